"""Utterances a second of the prefix beam search, with and without an n-gram model, on made-up frames of real texts.

Frames are as those of a trained model, mostly blank, with some confusion where units are; the model is of the same
texts. ``python -m benchmarks.beam data/librispeech_mini/manifest.parquet --frames 250``; each process does all of it.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from seqformer.data.manifest import read_manifest
from seqformer.data.text import BPE
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.lm.kneser_ney import train_kneser_ney


def made_up(units: list[int], frames: int, vocab: int, seed: int) -> np.ndarray:
    """log p (frames, vocab): a blank of about 0.85 between units, which are heard in one frame of every two at most."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.0, (frames, vocab))
    logits[:, 0] += 7
    places = np.sort(rng.choice(np.arange(1, frames - 1, 2), min(len(units), frames // 2 - 1), replace=False))
    for place, unit in zip(places, units, strict=False):
        logits[place] = rng.normal(0, 1.5, vocab)
        logits[place, [0, unit]] += 3, rng.uniform(2, 9)
        logits[place, rng.integers(1, vocab, 4)] += rng.uniform(0, 6, 4)
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)


def measure(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """{what: (seconds, seconds of a processor)}."""
    texts = read_manifest(arguments.manifest)["text"].to_list()
    tokenizer, model = BPE.fit(texts, arguments.vocab), train_kneser_ney(texts, 3)
    chosen = [text for text in texts if 12 * arguments.frames < 20 * len(text) < 16 * arguments.frames]  # of 10 s
    chosen = [chosen[item % len(chosen)] for item in range(arguments.items)]
    heard = [
        made_up(tokenizer.encode(text), arguments.frames, arguments.vocab, seed) for seed, text in enumerate(chosen)
    ]
    found = {}
    for name, lm in (("search alone", None), ("with 3-grams", model)):
        wall, processor = time.perf_counter(), time.process_time()
        BeamDecoder(lm, 0.5, 1.0, beam=arguments.beam).texts(heard, tokenizer)
        found[name] = time.perf_counter() - wall, time.process_time() - processor
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    for name, value in {"frames": 250, "vocab": 128, "beam": 16, "items": 64, "processes": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes) as pool:
        measured = list(pool.map(measure, [arguments] * arguments.processes))
    for name in measured[0]:
        walls, processors = zip(*(one[name] for one in measured), strict=True)
        wall, processor = (arguments.items * sum(1 / one for one in some) for some in (walls, processors))
        print(f"{name:14} {wall:7.1f} utterances/s; {processor:7.1f} were the processors all its own")


if __name__ == "__main__":
    main()
