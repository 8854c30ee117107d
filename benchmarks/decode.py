"""From a CTC head's frames to units: greedily, batch by batch, and by a beam search with and without a 3-gram model."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Case
from benchmarks.setting import Setting
from benchmarks.texts import made_up_frames, texts_of
from seqformer.data.text import Characters
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.greedy import best_units, collapse
from seqformer.lm.kneser_ney import train_kneser_ney

BLANK = 0

# A greedy decoder is run(best (B, T), mask (B, T)) -> list of lists of units.


def frame_by_frame(best: Tensor, mask: Tensor) -> list[list[int]]:
    """The usual loop, one number at a time."""
    found = []
    for units, keep in zip(best, mask, strict=True):
        text, before = [], BLANK
        for unit, real in zip(units, keep, strict=True):
            if real and unit.item() != before and unit.item() != BLANK:
                text.append(unit.item())
            before = unit.item()
        found.append(text)
    return found


def item_by_item(best: Tensor, mask: Tensor) -> list[list[int]]:
    """As transformers and torchaudio's tutorials do it."""
    return [
        [unit for unit in torch.unique_consecutive(units[keep]).tolist() if unit != BLANK]
        for units, keep in zip(best, mask, strict=True)
    ]


def grouped(best: Tensor, mask: Tensor) -> list[list[int]]:
    return [
        [unit for unit, _ in itertools.groupby(units[:length]) if unit != BLANK]
        for units, length in zip(best.tolist(), mask.sum(dim=1).tolist(), strict=True)
    ]


GREEDY = {
    "torch, item by item": lambda: item_by_item,
    "itertools.groupby": lambda: grouped,
    "frame by frame": lambda: frame_by_frame,
}


def pyctcdecode(symbols: list[str], heard: list[np.ndarray], beam: int) -> Callable[[], object]:
    from pyctcdecode import build_ctcdecoder

    decoder = build_ctcdecoder(["", *symbols[1:]])
    return lambda: [decoder.decode(one, beam_width=beam) for one in heard]


def flashlight(tokenizer: Characters, heard: list[np.ndarray], beam: int) -> Callable[[], object]:
    from seqformer.errors import InputError
    from seqformer.lm.flashlight import Flashlight

    try:
        decoder = BeamDecoder(beam=beam, engine=Flashlight())
    except InputError as error:
        raise ImportError(str(error)) from error
    return lambda: decoder.texts(heard, tokenizer)


def cases(setting: Setting) -> Iterator[list[Case]]:
    batch, frames = (4, 40) if setting.quick else (64, 400)
    for vocab in [32] if setting.quick else [32, 1024]:
        yield greedy(batch, frames, vocab, setting)
    items, frames, beam = (2, 60, 4) if setting.quick else (16, 250, 16)
    yield from beams(items, frames, beam, setting)


def greedy(batch: int, frames: int, vocab: int, setting: Setting) -> list[Case]:
    rng = np.random.default_rng(0)
    heard = [made_up_frames(rng.integers(1, vocab, frames // 6).tolist(), frames, vocab, seed) for seed in range(batch)]
    log_probs = torch.from_numpy(np.stack(heard)).to(setting.device)
    mask = torch.arange(frames) < torch.from_numpy(rng.integers(frames // 2, frames + 1, batch))[:, None]
    mask = mask.to(setting.device)
    best = best_units(log_probs)
    what = f"greedy, {batch} x {frames} frames of {vocab}"
    runs = {"seqformer": collapse} | setting.built(GREEDY)
    rate = {"count": batch, "unit": "utterances/s"}
    # All but this one are given the best unit of each frame; finding it is the larger part where the vocabulary is.
    whole = Case(what, "seqformer, from logits", lambda: collapse(best_units(log_probs), mask), **rate)
    found = [Case(what, who, lambda run=run: run(best, mask), **rate) for who, run in runs.items()]
    return [found[0], whole, *found[1:]]


def beams(items: int, frames: int, beam: int, setting: Setting) -> Iterator[list[Case]]:
    texts = texts_of(setting, 20 if setting.quick else 500)
    tokenizer = Characters.fit(texts)
    symbols = tokenizer.spellings()
    heard = [
        made_up_frames(tokenizer.encode(text)[: frames // 3], frames, len(symbols), seed)
        for seed, text in enumerate(texts[:items])
    ]
    what, rate = f"beam {beam}, {items} x {frames} frames of {len(symbols)}", {"count": items, "unit": "utterances/s"}
    ours = {"seqformer": lambda: BeamDecoder(beam=beam).texts(heard, tokenizer)}
    runs = ours | setting.built({"pyctcdecode": pyctcdecode}, symbols, heard, beam)
    runs |= setting.built({"flashlight-text": flashlight}, tokenizer, heard, beam)
    yield [Case(what, who, run, **rate) for who, run in runs.items()]
    model = train_kneser_ney(texts, 3)
    guided = BeamDecoder(model, 0.5, 1.0, beam=beam)
    yield [Case(f"{what}, 3-grams of words", "seqformer", lambda: guided.texts(heard, tokenizer), **rate)]
