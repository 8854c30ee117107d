"""How sure a word of a text is, by the other texts of its list."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqformer.decode.beam_decoder import Tokenizer
from seqformer.decode.prefix_beam import Hypothesis

LEAST = 1e-4  # a probability is kept so far from 0 and 1


class Calibration(NamedTuple):
    """p of being right = sigmoid(slope logit(confidence) + intercept) (Platt 1999); as given, nothing changes."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.slope * logit(confidence) + self.intercept)))


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, LEAST, 1 - LEAST)
    return np.log(p) - np.log1p(-p)


def word_confidences(hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """Words of the first text, each with the share of the list, by exp(score), whose texts have it in that place.

    Places are those of an alignment with the least word edits.
    """
    if not hypotheses:
        return []
    texts = [tokenizer.decode(one.units).split() for one in hypotheses]
    share = np.exp(np.array([one.score for one in hypotheses]) - hypotheses[0].score)
    found = np.zeros(len(texts[0]))
    for words, weight in zip(texts, share / share.sum(), strict=True):
        found += weight * same_words(texts[0], words)
    return list(zip(texts[0], np.minimum(found, 1.0).tolist(), strict=True))


def same_words(words: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Which of the words (n,) stay in an alignment with others of the least edits, as 0 and 1."""
    from rapidfuzz.distance import Levenshtein

    found = np.zeros(len(words))
    for step in Levenshtein.opcodes(words, others):
        found[step.src_start : step.src_end] = step.tag == "equal"
    return found
