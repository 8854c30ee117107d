"""A stream against the whole recording: its speed and largest difference, for ten sizes of chunk.

The model, of random weights, is a causal Conformer on 80 log-mel bands.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure import Case
from benchmarks.passes import drawn
from benchmarks.setting import Setting
from seqformer import SequenceModel, Stream, create_model

CHUNKS_MS = (10, 20, 40, 60, 80, 160, 240, 320, 640, 1000)
RATE = 16_000  # Hz
LEFT = 64  # frames of 40 ms that attention sees before its own


def causal_model(dim: int, depth: int) -> SequenceModel:
    torch.manual_seed(0)
    backbone = {"name": "conformer", "dim": dim, "depth": depth, "heads": 4, "causal": True, "context": [LEFT, 0]}
    return create_model({"name": "logmel", "normalize": "none"}, backbone, {"name": "ctc", "vocab": 128}).eval()


@torch.no_grad()
def whole(model: SequenceModel, x: Tensor) -> Tensor:
    """Logits (T, vocab) of samples (N,)."""
    return model({"x": x[None]}, torch.ones(1, len(x), dtype=torch.bool, device=x.device))["ctc"][0]


def streamed(model: SequenceModel, x: Tensor, chunk_ms: int) -> Tensor:
    stream = Stream(model)
    found = [stream.push(chunk) for chunk in x.split(chunk_ms * RATE // 1000)]
    return torch.cat([*found, stream.finish()])


def cases(setting: Setting) -> Iterator[list[Case]]:
    dim, depth, seconds = (16, 2, 1) if setting.quick else (144, 8, 20)
    chunks = CHUNKS_MS[-2:] if setting.quick else CHUNKS_MS
    model = causal_model(dim, depth).to(setting.device)
    x = 0.1 * drawn(seconds * RATE).to(setting.device)
    wanted, what = whole(model, x).log_softmax(dim=-1), f"{seconds} s, a causal Conformer of {dim} x {depth}"
    delay = f"a frame is there {1000 * Stream(model).delay / RATE:.1f} ms after its own first sample"
    found = [Case(what, "whole", lambda: whole(model, x), seconds, "x real time", note=delay)]
    for chunk_ms in chunks:
        error = float((streamed(model, x, chunk_ms).log_softmax(dim=-1) - wanted).abs().max())
        found.append(
            Case(
                what,
                f"chunks of {chunk_ms} ms",
                lambda chunk_ms=chunk_ms: streamed(model, x, chunk_ms),
                seconds,
                "x real time",
                note=f"differs by {error:.0e}",
            )
        )
    yield found
