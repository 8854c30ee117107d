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


@metric(higher_is_better=False)
def perplexity(predictions: Sequence, truth: Sequence) -> float:
    """exp of the mean of -log p over all units and ends of texts: predictions are what head ``next_unit`` gives."""
    log_probs = np.concatenate([np.asarray(one, dtype=float) for one in predictions])
    return float(np.exp(-log_probs.mean())) if len(log_probs) else float("nan")


@metric(higher_is_better=True)
def accuracy(predictions: Sequence, truth: Sequence) -> float:
    """Share of equal pairs; rows of probabilities count by their largest, class -1 in the truth is not scored."""
    found, wanted = _classes(predictions, truth)
    return float(np.mean(found == wanted)) if len(wanted) else float("nan")


@metric(higher_is_better=True)
def masked_accuracy(predictions: Sequence, truth: Sequence = ()) -> float:
    """Share of masked frames whose code is guessed: predictions (T, 2) of each item, the guess and the code, -1 where
    nothing was masked. There is no other truth: codes are made of the input.
    """
    pairs = np.concatenate([np.asarray(item, dtype=int).reshape(-1, 2) for item in predictions])
    masked = pairs[pairs[:, 1] >= 0]
    return float(np.mean(masked[:, 0] == masked[:, 1])) if len(masked) else float("nan")


@metric(higher_is_better=True)
def macro_f1(predictions: Sequence, truth: Sequence) -> float:
    """Mean over the classes present in predictions or truth of the F1 score; class -1 in the truth is not scored."""
    found, wanted = _classes(predictions, truth)
    return _macro_f1(found, wanted) if len(wanted) else float("nan")


@metric(higher_is_better=True)
def balanced_accuracy(predictions: Sequence, truth: Sequence) -> float:
    """Mean over the classes of the truth of the share found; class -1 in the truth is not scored."""
    found, wanted = _classes(predictions, truth)
    shares = [np.mean(found[wanted == name] == name) for name in np.unique(wanted)]
    return float(np.mean(shares)) if shares else float("nan")


@metric(higher_is_better=True)
def hierarchical_f1(predictions: Sequence, truth: Sequence, targets: list[int]) -> float:
    """Mean of two F1 scores: of ``targets``, a list of class numbers, against all others, and the macro F1 of the
    targets with all others as one class. The score of the CMI sensor gestures.

    Class -1 in the truth is not scored. The macro F1 is over the classes present in predictions or truth.
    """
    found, wanted = _classes(predictions, truth)
    if not len(wanted):
        return float("nan")
    other = -1
    found, wanted = (np.where(np.isin(side, targets), side, other) for side in (found, wanted))
    hits = np.sum((found != other) & (wanted != other))
    named = np.sum(found != other) + np.sum(wanted != other)
    # Neither side has a target: 0, as scikit-learn counts it.
    binary = 2 * hits / named if named else 0.0
    return float((binary + _macro_f1(found, wanted)) / 2)


@metric(higher_is_better=True)
def auc(predictions: Sequence, truth: Sequence) -> float:
    """Area under the ROC curve, ties by half: of the second of two classes, or the mean over classes of one against
    the rest, or over the columns of 0 and 1 of a truth (N, V).

    -1 and NaN in the truth are not scored; a class that is in all of them, or in none, is left out.
    """
    scores, wanted = _columns(predictions), np.asarray(truth)
    if wanted.ndim == 1 and scores.shape[1] > 1:
        wanted = np.where(wanted[:, None] >= 0, wanted[:, None] == np.arange(scores.shape[1]), np.nan)
        scores, wanted = (side[:, 1:] if side.shape[1] == 2 else side for side in (scores, wanted))
    wanted = _columns(wanted)
    areas = [_area(scores[:, column], wanted[:, column]) for column in range(wanted.shape[1])]
    areas = [area for area in areas if not np.isnan(area)]
    return float(np.mean(areas)) if areas else float("nan")


@metric(higher_is_better=False)
def kl(predictions: Sequence, truth: Sequence) -> float:
    """Mean over rows of KL(truth || prediction) in nats, both (N, V) shares of classes: the score of HMS.

    Predictions are clipped to 1e-15 and above; a share of 0 in the truth adds nothing, a row with NaN is not scored.
    """
    found, wanted = _pair(predictions, truth)
    rows = ~np.isnan(wanted).any(axis=1)
    found, wanted = found[rows].clip(1e-15, 1), wanted[rows]
    gaps = np.where(wanted > 0, wanted * (np.log(wanted.clip(1e-300)) - np.log(found)), 0).sum(axis=1)
    return float(gaps.mean()) if len(gaps) else float("nan")


@metric(higher_is_better=False)
def mae(predictions: Sequence, truth: Sequence, clip: list[float] | None = None) -> float:
    """Mean absolute error over scored values (NaN in the truth is not), both clipped to [low, high] first if given."""
    found, wanted = _pair(predictions, truth)
    if clip is not None:
        found, wanted = found.clip(*clip), wanted.clip(*clip)
    gaps = np.abs(found - wanted)[~np.isnan(wanted)]
    return float(gaps.mean()) if gaps.size else float("nan")


@metric(higher_is_better=False)
def rmse(predictions: Sequence, truth: Sequence) -> float:
    """Root mean squared error over scored values of all columns (NaN in the truth is not scored)."""
    found, wanted = _pair(predictions, truth)
    squares = np.square(found - wanted)[~np.isnan(wanted)]
    return float(np.sqrt(squares.mean())) if squares.size else float("nan")


@metric(higher_is_better=False)
def mcrmse(predictions: Sequence, truth: Sequence, columns: list[int] | None = None) -> float:
    """Mean over columns of the root mean squared error over a column's scored values: the score of OpenVaccine.

    Both are (N, K), NaN in the truth not scored; ``columns`` are those that count, all by default. A column without
    any scored value is left out.
    """
    found, wanted = _pair(predictions, truth)
    every = range(wanted.shape[1]) if columns is None else columns
    errors = [rmse(found[:, column], wanted[:, column]) for column in every]
    errors = [error for error in errors if not np.isnan(error)]
    return float(np.mean(errors)) if errors else float("nan")


@metric(higher_is_better=True)
def r2(predictions: Sequence, truth: Sequence) -> float:
    """Mean over columns of 1 - squared error / squared deviation of the truth from its mean: the score of LEAP.

    Both are (N, K), NaN in the truth not scored. A column whose truth is constant counts 1 where it is met exactly and
    0 else, as in scikit-learn; one with fewer than two values is left out.
    """
    found, wanted = _pair(predictions, truth)
    scores = []
    for guess, column in zip(found.T, wanted.T, strict=True):
        guess, column = guess[~np.isnan(column)], column[~np.isnan(column)]
        if len(column) < 2:
            continue
        error, spread = np.square(guess - column).sum(), np.square(column - column.mean()).sum()
        scores.append(1 - error / spread if column.min() < column.max() else float(error == 0))
    return float(np.mean(scores)) if scores else float("nan")


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


def _macro_f1(found: np.ndarray, wanted: np.ndarray) -> float:
    names = np.union1d(found, wanted)
    hits = [np.sum((found == name) & (wanted == name)) for name in names]
    named = [np.sum(found == name) + np.sum(wanted == name) for name in names]
    return float(np.mean(2 * np.asarray(hits) / np.asarray(named)))


def _area(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Area under the ROC curve of one column by ranks, NaN where there are not both a 0 and a 1 in the truth."""
    scored = wanted >= 0  # NaN is not
    ones = wanted[scored] > 0
    pairs = int(ones.sum()) * int((~ones).sum())
    if not pairs:
        return float("nan")
    _, place, counts = np.unique(scores[scored], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share the middle of their ranks
    return float((ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / pairs)


def _columns(values: Sequence) -> np.ndarray:
    """Values as float (N, K), whether given as (N,) or (N, K)."""
    values = np.asarray(values, dtype=float)
    return values.reshape(len(values), -1) if len(values) else values.reshape(0, *(values.shape[1:] or (1,)))


def _pair(predictions: Sequence, truth: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truth as float (N, K). Raises ValueError when their shapes differ."""
    found, wanted = _columns(predictions), _columns(truth)
    if found.shape != wanted.shape:
        raise ValueError(f"predictions of shape {found.shape} for a truth of shape {wanted.shape}")
    return found, wanted
