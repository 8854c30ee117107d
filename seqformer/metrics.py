"""Metrics: plain functions of (predictions, truth). Registered ones can be named in a config."""

from collections.abc import Callable, Sequence

import numpy as np

from seqformer.registry import register


def metric(higher_is_better: bool) -> Callable[[Callable], Callable]:
    """Register a metric and say which way it improves."""

    def decorate(function: Callable) -> Callable:
        function.higher_is_better = higher_is_better
        return register("metric")(function)

    return decorate


@metric(higher_is_better=False)
def wer(predictions: Sequence[str], truth: Sequence[str]) -> float:
    """Word error rate: word edits over all texts / words of all references; infinite when only hypotheses have any."""
    return _error_rate([text.split() for text in predictions], [text.split() for text in truth])


@metric(higher_is_better=False)
def cer(predictions: Sequence[str], truth: Sequence[str]) -> float:
    """Character error rate: character edits over all texts / characters of all references, spaces counted."""
    return _error_rate(predictions, truth)


@metric(higher_is_better=True)
def normalized_edit_similarity(predictions: Sequence[str], truth: Sequence[str]) -> float:
    """(N - D) / N, N characters of all references, D character edits: the score of ASL fingerspelling."""
    return 1.0 - cer(predictions, truth)


@metric(higher_is_better=True)
def accuracy(predictions: Sequence, truth: Sequence) -> float:
    """Share of equal pairs; rows of probabilities count by their largest, class -1 in the truth is not scored."""
    found, wanted = _classes(predictions, truth)
    return float(np.mean(found == wanted)) if len(wanted) else float("nan")


@metric(higher_is_better=True)
def macro_f1(predictions: Sequence, truth: Sequence) -> float:
    """Mean over the classes present in predictions or truth of the F1 score; class -1 in the truth is not scored."""
    from sklearn.metrics import f1_score

    found, wanted = _classes(predictions, truth)
    return float(f1_score(wanted, found, average="macro", zero_division=0)) if len(wanted) else float("nan")


@metric(higher_is_better=False)
def mae(predictions: Sequence, truth: Sequence) -> float:
    """Mean absolute error over scored values (NaN in the truth is not scored)."""
    truth = np.asarray(truth, dtype=float)
    gaps = np.abs(np.asarray(predictions, dtype=float).reshape(truth.shape) - truth)[~np.isnan(truth)]
    return float(gaps.mean()) if gaps.size else float("nan")


def word_edits(prediction: str, truth: str) -> tuple[int, int]:
    """Word edits between two texts, and words of the truth."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(prediction.split(), truth.split()), len(truth.split())


def _error_rate(predictions: Sequence, truth: Sequence) -> float:
    from rapidfuzz.distance import Levenshtein

    edits = sum(Levenshtein.distance(hypothesis, text) for hypothesis, text in zip(predictions, truth, strict=True))
    length = sum(len(text) for text in truth)
    return edits / length if length else (float("inf") if edits else 0.0)


def _classes(predictions: Sequence, truth: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes (N,) of the scored items."""
    found, wanted = np.asarray(predictions), np.asarray(truth)
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} predictions for {len(wanted)} truths")
    found = found.argmax(axis=-1) if found.ndim == 2 else found
    scored = wanted >= 0 if wanted.dtype.kind == "i" else np.ones(len(wanted), dtype=bool)
    return found[scored], wanted[scored]
