"""Metrics of competitions against loops written from their definitions, on random cases with gaps, ties and nothing."""

import math

import numpy as np
import pytest

from seqformer.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    hierarchical_f1,
    kl,
    macro_f1,
    mae,
    mcrmse,
    normalized_edit_similarity,
    r2,
    rmse,
)

CASES = 1000


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def same(found: float, expected: float) -> bool:
    return (math.isnan(found) and math.isnan(expected)) or found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def tables(seed: int):
    """Predictions and truth (N, K): coarse numbers, so that some are equal and columns constant, with NaN, N from 0."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        size = (int(rng.integers(0, 7)), int(rng.integers(1, 4)))
        truth = rng.integers(-2, 4, size) / 2
        yield rng.integers(-2, 4, size) / 2, np.where(rng.random(size) < rng.choice([0, 0.3, 0.9]), np.nan, truth)


def scored(predictions: np.ndarray, truth: np.ndarray) -> list[list[tuple[float, float]]]:
    """For each column, pairs of prediction and truth."""
    return [
        [(float(p), float(t)) for p, t in zip(predictions[:, k], truth[:, k], strict=True) if not math.isnan(t)]
        for k in range(truth.shape[1])
    ]


def clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def r2_of(pairs: list[tuple[float, float]]) -> float:
    middle = sum(t for _, t in pairs) / len(pairs)
    error, spread = sum((p - t) ** 2 for p, t in pairs), sum((t - middle) ** 2 for _, t in pairs)
    if len({t for _, t in pairs}) == 1:
        return 1.0 if error == 0 else 0.0
    return 1 - error / spread


def test_metrics_of_values_equal_loops():
    for predictions, truth in tables(0):
        columns = scored(predictions, truth)
        pairs = [pair for column in columns for pair in column]
        roots = [math.sqrt(mean([(p - t) ** 2 for p, t in column])) for column in columns if column]
        assert same(mae(predictions, truth), mean([abs(p - t) for p, t in pairs]))
        assert same(mae(predictions, truth, clip=[0, 1]), mean([abs(clipped(p) - clipped(t)) for p, t in pairs]))
        assert same(rmse(predictions, truth), math.sqrt(mean([(p - t) ** 2 for p, t in pairs])))
        assert same(mcrmse(predictions, truth), mean(roots))
        last = math.sqrt(mean([(p - t) ** 2 for p, t in columns[-1]]))
        assert same(mcrmse(predictions, truth, columns=[truth.shape[1] - 1]), last)
        assert same(r2(predictions, truth), mean([r2_of(column) for column in columns if len(column) > 1]))


def test_metrics_of_values_take_one_column_flat_and_no_other_shape():
    for metric in (mae, rmse, mcrmse, r2):
        assert metric([[1.0], [2.0], [4.0]], [1.0, 3.0, 4.0]) == metric([1.0, 2.0, 4.0], [1.0, 3.0, 4.0])
        assert math.isnan(metric([], []))
        with pytest.raises(ValueError, match=r"predictions of shape \(2, 1\) for a truth of shape \(1, 2\)"):
            metric([1.0, 2.0], [[1.0, 2.0]])


def test_kl_equals_a_loop():
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        rows = int(rng.integers(0, 5))
        counts = rng.integers(0, 3, (rows, 4)) + np.eye(4)[rng.integers(0, 4, rows)]
        truth = counts / counts.sum(axis=1, keepdims=True)
        truth[rng.random(rows) < 0.2] = np.nan
        predictions = rng.dirichlet(np.ones(4), rows)
        predictions[rng.random((rows, 4)) < 0.1] = 0
        expected = [
            sum(t * (math.log(t) - math.log(max(p, 1e-15))) for p, t in zip(guess, row, strict=True) if t > 0)
            for guess, row in zip(predictions.tolist(), truth.tolist(), strict=True)
            if not math.isnan(row[0])
        ]
        assert same(kl(predictions, truth), mean(expected))


def f1(pairs: list[tuple[int, int]], name: int) -> float:
    hits = sum(p == t == name for p, t in pairs)
    named = sum(p == name for p, _ in pairs) + sum(t == name for _, t in pairs)
    return 2 * hits / named if named else 0.0


def classes(seed: int):
    """Predicted and true classes of 0 to 4, -1 in the truth not scored."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        size = int(rng.integers(0, 9))
        yield rng.integers(0, 5, size), np.where(rng.random(size) < 0.2, -1, rng.integers(0, 5, size))


def test_metrics_of_classes_equal_loops():
    for predictions, truth in classes(2):
        pairs = [(int(p), int(t)) for p, t in zip(predictions, truth, strict=True) if t >= 0]
        seen = sorted({t for _, t in pairs})
        assert same(accuracy(predictions, truth), mean([float(p == t) for p, t in pairs]))
        recalls = [mean([float(p == t) for p, t in pairs if t == name]) for name in seen]
        assert same(balanced_accuracy(predictions, truth), mean(recalls))
        either = sorted({name for pair in pairs for name in pair})
        assert same(macro_f1(predictions, truth), mean([f1(pairs, name) for name in either]))


def test_hierarchical_f1_equals_a_loop():
    """Both scores as the competition states them: target or not, and targets with everything else as one class."""
    targets, other = [0, 2, 3], 9
    for predictions, truth in classes(3):
        pairs = [(int(p), int(t)) for p, t in zip(predictions, truth, strict=True) if t >= 0]
        binary = f1([(int(p in targets), int(t in targets)) for p, t in pairs], 1)
        merged = [tuple(name if name in targets else other for name in pair) for pair in pairs]
        macro = mean([f1(merged, name) for name in sorted({name for pair in merged for name in pair})])
        found = hierarchical_f1(predictions, truth, targets=targets)
        assert same(found, (binary + macro) / 2)
        rows = np.eye(5)[predictions]
        assert same(hierarchical_f1(rows, truth, targets=targets), found)


def area(pairs: list[tuple[float, float]]) -> float:
    """Share of (1, 0) pairs that are in order, ties by half."""
    ones, zeros = [p for p, t in pairs if t == 1], [p for p, t in pairs if t == 0]
    return mean([1.0 if one > zero else 0.5 if one == zero else 0.0 for one in ones for zero in zeros])


def test_auc_counts_pairs_in_order():
    rng = np.random.default_rng(4)
    for _ in range(CASES):
        size = (int(rng.integers(0, 8)), 3)
        scores, truth = rng.integers(0, 4, size) / 4, np.where(rng.random(size) < 0.2, np.nan, rng.integers(0, 2, size))
        areas = [area(column) for column in scored(scores, truth)]
        assert same(auc(scores, truth), mean([value for value in areas if not math.isnan(value)]))
        assert same(auc(scores[:, 0], truth[:, 0]), areas[0])
        names = rng.integers(-1, 3, size[0])
        for columns in (3, 2):
            kept = names < columns
            one_hot = np.where(names[kept, None] < 0, np.nan, names[kept, None] == np.arange(columns))
            areas = [area(column) for column in scored(scores[kept, :columns], one_hot)][3 - columns :]
            found = auc(scores[kept, :columns], names[kept])
            assert same(found, mean([value for value in areas if not math.isnan(value)]))


def test_the_score_of_fingerspelling_counts_a_transposition_twice():
    """It is Levenshtein's distance; Damerau's, with one edit for two swapped characters, is another score."""
    assert normalized_edit_similarity(["acb"], ["abc"]) == pytest.approx(1 - 2 / 3)
    assert normalized_edit_similarity(["abdc", "xy"], ["abcd", "xy"]) == pytest.approx((6 - 2) / 6)
