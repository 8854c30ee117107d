"""Made-up texts and what a recogniser makes of them, for parts that need no recording."""

import numpy as np

from benchmarks.setting import Setting


def texts_of(setting: Setting, count: int) -> list[str]:
    """Texts of the manifest, over again if it has fewer, or made-up ones."""
    if setting.manifest is None:
        return made_up_texts(count)
    from seqformer import read_manifest

    found = read_manifest(setting.manifest)["text"].to_list()
    return [found[index % len(found)] for index in range(count)]


def made_up_texts(count: int, words: int = 20, seed: int = 0) -> list[str]:
    """Texts of about ``words`` of 2,000 words, a few of them frequent."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    known = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(2000)]
    rank = 1 / np.arange(1, len(known) + 1)
    return [
        " ".join(known[index] for index in rng.choice(len(known), size, p=rank / rank.sum()))
        for size in rng.integers(words // 2, 3 * words // 2 + 1, count)
    ]


def misheard(texts: list[str], rate: float = 0.1, seed: int = 1) -> list[str]:
    """The texts with some words left out, doubled or changed."""
    rng, found = np.random.default_rng(seed), []
    for text in texts:
        words = []
        for word in text.split():
            draw = rng.random() / rate
            words += [word] if draw > 1 else [] if draw > 0.7 else [word, word] if draw > 0.5 else [word[::-1]]
        found.append(" ".join(words))
    return found


def made_up_frames(units: list[int], frames: int, vocab: int, seed: int) -> np.ndarray:
    """log p (frames, vocab), as a trained model's: a blank of about 0.85 between units, and some confusion where units
    are, which are heard in one frame of every two at most.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.0, (frames, vocab))
    logits[:, 0] += 7
    places = np.sort(rng.choice(np.arange(1, frames - 1, 2), min(len(units), frames // 2 - 1), replace=False))
    for place, unit in zip(places, units, strict=False):
        logits[place] = rng.normal(0, 1.5, vocab)
        logits[place, [0, unit]] += 3, rng.uniform(2, 9)
        logits[place, rng.integers(1, vocab, 4)] += rng.uniform(0, 6, 4)
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)
