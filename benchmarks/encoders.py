"""Milliseconds of the encoders, forward and training step, interleaved so that a busy machine is busy for all of them.

The depthwise convolution is timed beside ``conv1d``, the way it is usually written.
``make bench`` or ``python -m benchmarks.encoders squeezeformer_s conformer_ctc_s --batch 8 --frames 1000``.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from seqformer import create_backbone
from seqformer.nn.conv import DepthwiseConv


def milliseconds(step, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def encoder_steps(name: str, batch: int, frames: int, device: str) -> dict[str, object]:
    backbone = create_backbone(name, in_dim=80).to(device)
    x = torch.randn(batch, frames, 80, device=device)
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device)

    def forward() -> None:
        backbone.eval()
        with torch.no_grad():
            backbone(x, mask)

    def train() -> None:
        backbone.train()
        backbone(x, mask)[0].square().mean().backward()
        backbone.zero_grad(set_to_none=True)

    return {"forward": forward, "train": train}


def convolution_steps(batch: int, frames: int, dim: int, device: str) -> dict[str, object]:
    ours = DepthwiseConv(dim, 31).to(device)
    usual = nn.Conv1d(dim, dim, 31, padding=15, groups=dim).to(device)
    x = torch.randn(batch, frames, dim, device=device)
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device)
    return {
        "ours": lambda: ours(x, mask).square().mean().backward(),
        "conv1d": lambda: usual(x.transpose(1, 2)).square().mean().backward(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["squeezeformer_xs", "squeezeformer_s", "conformer_ctc_s"])
    for option, default in (("--batch", 8), ("--frames", 1000), ("--rounds", 5), ("--threads", 1)):
        parser.add_argument(option, type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {
        (name, kind): step
        for name in options.names
        for kind, step in encoder_steps(name, options.batch, options.frames, device).items()
    }
    width = (options.batch, options.frames // 4, 392)
    steps |= {(f"depthwise {width}", kind): step for kind, step in convolution_steps(*width, device).items()}
    found = {key: [] for key in steps}
    for round_number in range(options.rounds + 1):
        for key, step in steps.items():
            taken = milliseconds(step, device)
            if round_number:  # the first round warms up
                found[key].append(taken)
    print(f"{device}, {options.threads} threads, {options.batch} x {options.frames} frames, {options.rounds} rounds")
    for (name, kind), taken in found.items():
        print(f"{name:28} {kind:8} {statistics.median(taken):9.1f} ms  ({min(taken):.1f} - {max(taken):.1f})")


if __name__ == "__main__":
    main()
