"""Text of recordings of any length, by overlapping windows; memory is that of one window."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from seqformer.data.audio import audio_facts, read_windows, resampling
from seqformer.decode.spans import Span, Spans
from seqformer.errors import InputError
from seqformer.heads.ctc import CTC
from seqformer.model import SequenceModel


def read_long(
    model: SequenceModel,
    path: str | Path,
    window_s: float = 30.0,
    overlap_s: float = 5.0,
    progress: Callable[[float, float], None] | None = None,
) -> tuple[list[Span], float]:
    """The units of a recording with their frames, and the length of a frame in seconds.

    ``progress`` is called with the seconds read and those there are. Raises InputError when the model does not make
    text of audio, the file cannot be read, or the overlap is not shorter than the window.
    """
    head = ctc_head(model)
    spans, frame = Spans(), model.frontend.hop * model.backbone.stride
    facts = audio_facts(path)
    total = facts["frames"] / facts["rate"]
    for log_prob in window_log_probs(model, path, facts["rate"], head, window_s, overlap_s):
        spans.push(log_prob.argmax(dim=-1).tolist())
        if progress is not None:
            progress(min(total, spans.frames * frame / model.frontend.rate), total)
    return spans.found, frame / model.frontend.rate


def window_log_probs(
    model: SequenceModel, path: str | Path, found: int, head: str, window_s: float, overlap_s: float
) -> Iterator[Tensor]:
    """Log-probabilities (frames, vocab) of a file of ``found`` Hz, window by window, which joined are the whole's.

    Windows begin on the same grid of frames as the whole, and two neighbours are cut in the middle of their overlap.
    So a model that sees less than half the overlap to either side, and takes no statistics of the whole, gives exactly
    what it gives unsplit; another differs near the seams by what it misses there.
    """
    rate, frame = model.frontend.rate, model.frontend.hop * model.backbone.stride
    grid = math.lcm(frame, resampling(found, rate)[0])
    step, overlap = round((window_s - overlap_s) * rate) // grid * grid, round(overlap_s * rate) // grid * grid
    if step < grid or overlap < 0:
        raise InputError(f"overlap is {overlap_s:g} s of windows of {window_s:g} s; expected 0 or more, and less")
    device, half, before = next(model.parameters()).device, overlap // frame // 2, None
    first = 0
    for samples in read_windows(path, rate, step + overlap, step):
        if before is not None:
            yield before[first : step // frame + half]
            first = half
        x = torch.from_numpy(samples)[None].to(device)
        log_prob, mask = model.log_probs({"x": x}, torch.ones_like(x, dtype=torch.bool), head)
        before = log_prob[0, mask[0]].cpu()
    yield before[first:]


def ctc_head(model: SequenceModel) -> str:
    """The name of a model's CTC head. Raises InputError unless the model turns frames of audio into text."""
    heads = [name for name, head in model.heads.items() if isinstance(head, CTC)]
    audio = hasattr(model.frontend, "rate") and hasattr(model.frontend, "hop")
    if not audio or not heads or model.tokenizer is None:
        raise InputError("the model turns no audio into text: that takes audio features, a CTC head, a tokenizer")
    return heads[0]
