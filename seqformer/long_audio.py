"""Text of recordings of any length, by overlapping windows; memory is that of one window."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from seqformer.batch import Batch
from seqformer.data.audio import audio_facts, read_windows, resampling
from seqformer.decode.align import Span, align
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.pauses import cut_at_pauses
from seqformer.decode.spans import Spans
from seqformer.errors import InputError
from seqformer.heads.ctc import CTC
from seqformer.model import SequenceModel
from seqformer.transcripts import mean_log_probs

PIECE_S = 30.0  # of a beam search, which keeps what it did in every frame


def read_long(
    models: Sequence[SequenceModel],
    path: str | Path,
    window_s: float = 30.0,
    overlap_s: float = 5.0,
    decoder: BeamDecoder | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> tuple[list[Span], float]:
    """The units of a recording with their frames, and the length of a frame in seconds.

    Models of one run with one tokenizer are read by the mean of what they say of each frame: greedily or by a beam
    search, whose language model begins anew after a pause every half a minute. ``progress`` is called with the seconds
    read and those there are. Raises InputError when the models do not make text of audio, the file cannot be read, or
    the overlap is not shorter than the window.
    """
    first, facts = models[0], audio_facts(path)
    total, rate = facts["frames"] / facts["rate"], first.frontend.rate
    frame = first.frontend.hop * first.backbone.stride

    def frames() -> Iterator[np.ndarray]:
        done = 0
        windows = facts["rate"], window_s, overlap_s
        voices = [window_log_probs(model, path, ctc_head(model), *windows) for model in models]
        for parts in zip(*voices, strict=True):
            yield mean_log_probs([[part] for part in parts])[0] if len(parts) > 1 else parts[0]
            done += len(parts[0])
            if progress is not None:
                progress(min(total, done * frame / rate), total)

    if decoder is None:
        spans = Spans()
        for log_probs in frames():
            spans.push(log_probs)
        return spans.found, frame / rate
    found, start = [], 0
    for log_probs in cut_at_pauses(frames(), math.ceil(PIECE_S * rate / frame)):
        units = decoder.hypotheses([log_probs], first.tokenizer)[0][0].units
        spans, _ = align(log_probs, units)
        found += [span._replace(start=span.start + start, end=span.end + start) for span in spans]
        start += len(log_probs)
    return found, frame / rate


def window_log_probs(
    model: SequenceModel, path: str | Path, head: str, found: int, window_s: float, overlap_s: float
) -> Iterator[np.ndarray]:
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
        x = torch.from_numpy(samples)[None]
        batch = Batch([str(path)], {"x": x}, torch.ones_like(x, dtype=torch.bool), {}, torch.ones(1))
        before = model.log_probs(batch.to(device), head)[0].cpu().numpy()
    yield before[first:]


def ctc_head(model: SequenceModel) -> str:
    """The name of a model's CTC head. Raises InputError unless the model turns frames of audio into text."""
    heads = [name for name, head in model.heads.items() if isinstance(head, CTC)]
    audio = hasattr(model.frontend, "rate") and hasattr(model.frontend, "hop")
    if not audio or not heads or model.tokenizer is None:
        raise InputError("the model turns no audio into text: that takes audio features, a CTC head, a tokenizer")
    return heads[0]
