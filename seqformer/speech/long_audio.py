"""Units of recordings of any length, by overlapping windows; memory is that of one window."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seqformer.batch import Batch
from seqformer.data.audio import audio_facts, read_windows, resampling
from seqformer.decode.align import Span, align
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.pauses import cut_at_pauses
from seqformer.errors import InputError
from seqformer.model import TRANSCRIBERS, SequenceModel
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

    One model reads greedily. A decoder reads the mean of what several with one tokenizer say of each frame; it takes
    half a minute at a time, from pause to pause, and its language model begins anew in each. A window of infinite
    length is the whole. ``progress`` is called with the seconds read and those there are. Raises InputError when the
    models do not make text of audio, the file cannot be read, the overlap is not shorter than the window, or a decoder
    is given for a transducer.
    """
    first, facts = models[0], audio_facts(path)
    total, seconds = facts["frames"] / facts["rate"], frame_seconds(first)
    heads = [text_head(model) for model in models]

    def parts() -> Iterator[list[Tensor]]:
        done = 0
        pairs = zip(models, heads, strict=True)
        for found in zip(*(windows(*pair, path, window_s, overlap_s) for pair in pairs), strict=True):
            yield list(found)
            done += len(found[0])
            if progress is not None:
                progress(min(total, done * seconds), total)

    if decoder is None:
        reader = first.heads[heads[0]].reader()
        for (logits,) in parts():
            reader.push(logits)
        return reader.found, seconds
    first.check_log_probs(heads[0])
    found, start = [], 0
    voices = ([[one.float().log_softmax(dim=-1).cpu().numpy()] for one in part] for part in parts())
    for log_probs in cut_at_pauses((mean_log_probs(part)[0] for part in voices), math.ceil(PIECE_S / seconds)):
        units = decoder.hypotheses([log_probs], first.tokenizer)[0][0].units
        spans, _ = align(log_probs, units)
        found += [span._replace(start=span.start + start, end=span.end + start) for span in spans]
        start += len(log_probs)
    return found, seconds


def windows(model: SequenceModel, head: str, path: str | Path, window_s: float, overlap_s: float) -> Iterator[Tensor]:
    """What a head's ``forward`` gives of a file's frames (T, K), window by window, which joined are the whole's.

    Windows begin on the same grid of frames as the whole, and two neighbours are cut in the middle of their overlap.
    So a model that sees less than half the overlap to either side, and takes no statistics of the whole, gives exactly
    what it gives unsplit; another differs near the seams by what it misses there.
    """
    facts, rate, frame = audio_facts(path), model.frontend.rate, model.frontend.hop * model.backbone.stride
    if not 0 <= overlap_s < window_s:
        raise InputError(f"overlap is {overlap_s:g} s of windows of {window_s:g} s; expected 0 or more, and less")
    window_s = min(window_s, facts["frames"] / facts["rate"] + overlap_s + 1)
    grid = math.lcm(frame, resampling(facts["rate"], rate)[0])
    step, overlap = (round(seconds * rate) // grid * grid for seconds in (window_s - overlap_s, overlap_s))
    if not step:
        raise InputError(f"windows begin every {window_s - overlap_s:g} s; expected at least {grid / rate:g} s")
    device, half, before = next(model.parameters()).device, overlap // frame // 2, None
    first = 0
    for samples in read_windows(path, rate, step + overlap, step):
        if before is not None:
            yield before[first : step // frame + half]
            first = half
        x = torch.from_numpy(samples)[None]
        batch = Batch([str(path)], {"x": x}, torch.ones_like(x, dtype=torch.bool), {}, torch.ones(1))
        before = model.outputs(batch.to(device), head)[0]
    yield before[first:]


def text_head(model: SequenceModel) -> str:
    """The head that reads recordings of any length. Raises InputError unless the model makes text of audio so."""
    audio = hasattr(model.frontend, "rate") and hasattr(model.frontend, "hop")
    if not audio or model.text_head is None or model.tokenizer is None:
        raise InputError(f"the model reads no audio by windows, nor gives times of words: {TRANSCRIBERS}")
    return model.text_head


def frame_seconds(model: SequenceModel) -> float:
    """How far apart the frames are that a model's heads read."""
    return model.frontend.hop * model.backbone.stride / model.frontend.rate
