"""Weights of several runs, fitted on their out-of-fold predictions and scored on folds that they were not fitted on."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, permutations
from pathlib import Path
from typing import Any

import numpy as np

from seqformer.checkpoint import write_file
from seqformer.ensemble import check_alike, describe_run
from seqformer.errors import InputError, first_few
from seqformer.oof import OutOfFold, read_out_of_fold, same_truth
from seqformer.predict import score
from seqformer.registry import lookup

STARTS = 300  # at most so many points of the lattice that the search starts from
FINEST = 1e-4  # of the weights


def blend_runs(folders: list[Path], path: Path, equal: bool = False) -> dict[str, Any]:
    """Fit the weights of some runs, write them to a blend file, and return what it holds.

    The ``score`` is cross-fitted: a fold's rows are blended by weights fitted on the other folds' rows. The weights
    written are fitted on all rows. With ``equal`` nothing is fitted. Raises InputError when the runs cannot be
    compared: other rows, folds, truths, targets or metrics, or predictions that are not out of fold.
    """
    if len(folders) < 2:
        raise InputError(f"a blend is of two runs or more, found {len(folders)}")
    runs = [read_out_of_fold(folder) for folder in folders]
    check_comparable(runs)
    metric, folds, count = runs[0].run.config.metric, runs[0].folds, len(runs)
    names = sorted(set(folds.tolist()))
    if not equal and len(names) < 2:
        raise InputError(f"only fold {names[0]} was validated, so that weights would be scored on the rows they were "
                         "fitted on; validate more folds, or pass --equal")  # fmt: skip
    blend = Blend([run.predictions for run in runs], runs[0].truth, metric)
    weights = np.full(count, 1 / count)
    found = {"metric": metric["name"], "rows": len(folds), "equal": blend.score(weights), "score": blend.score(weights)}
    if not equal:
        found["score"] = cross_fitted(blend, folds)
        weights = fit_weights(blend.loss, count)
    alone = [blend.score(row) for row in np.eye(count)]
    found["runs"] = [
        describe_run(run.run, path.parent) | {"weight": float(weight), "score": value}
        for run, weight, value in zip(runs, weights, alone, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(found, indent=1) + "\n")
    return found


def check_comparable(runs: list[OutOfFold]) -> None:
    """Raise InputError unless runs predict the same rows in the same folds with the same truth, in one shape."""
    check_alike([run.run for run in runs])
    first, here = runs[0], runs[0].run.folder
    if isinstance(first.predictions[0], str):
        raise InputError(f"{here} predicts texts, which have no mean; predict with both runs")
    for run in runs[1:]:
        there = run.run.folder
        if run.ids != first.ids:
            odd = sorted(set(first.ids) ^ set(run.ids))
            raise InputError(f"{here} and {there} predict different rows: {len(odd)} are in one only: {first_few(odd)}")
        other = [row for row, a, b in zip(run.ids, first.folds, run.folds, strict=True) if a != b]
        if other:
            raise InputError(f"{here} and {there} have different folds: {len(other)} rows moved: {first_few(other)}")
        if not same_truth(first.truth, run.truth):
            raise InputError(f"{here} and {there} were validated against different truths of the same rows")
        shapes = zip(run.ids, first.predictions, run.predictions, strict=True)
        odd = [row for row, a, b in shapes if np.shape(a) != np.shape(b)]
        if odd:
            raise InputError(f"{here} and {there} predict different shapes in {len(odd)} rows: {first_few(odd)}")


class Blend:
    """Predictions of several runs for the same rows, (...) or (T, ...) each, and the metric of their weighted mean."""

    def __init__(self, predictions: list[list], truth: list, metric: dict[str, Any]):
        first = [np.asarray(value) for value in predictions[0]]
        self.ends = np.cumsum([len(value) for value in first])[:-1] if first[0].ndim else None
        self.stack = np.stack([self._flat(run) for run in predictions])  # (runs, all frames, ...)
        self.truth, self.metric = truth, metric

    def _flat(self, values: list) -> np.ndarray:
        return np.asarray(values, dtype=float) if self.ends is None else np.concatenate(values).astype(float)

    def predict(self, weights: np.ndarray) -> list:
        """The weighted mean of each row."""
        mean = np.tensordot(weights, self.stack, axes=1)
        return list(mean) if self.ends is None else np.split(mean, self.ends)

    def score(self, weights: np.ndarray, rows: np.ndarray | None = None) -> float:
        """The metric over all rows, or those with a True."""
        rows = np.arange(len(self.truth)) if rows is None else np.flatnonzero(rows)
        found = self.predict(weights)
        return score(self.metric, [found[row] for row in rows], [self.truth[row] for row in rows])

    def loss(self, weights: np.ndarray, rows: np.ndarray | None = None) -> float:
        """The metric, smaller being better; infinite where it is no number."""
        value = self.score(weights, rows) * (-1 if lookup("metric", self.metric["name"]).higher_is_better else 1)
        return value if math.isfinite(value) else math.inf


def cross_fitted(blend: Blend, folds: np.ndarray) -> float:
    """The metric over all rows, each blended by weights that were fitted without the rows of its fold."""
    found: list[Any] = [None] * len(folds)
    for fold in sorted(set(folds.tolist())):
        weights = fit_weights(lambda w: blend.loss(w, folds != fold), len(blend.stack))  # noqa: B023
        mean = blend.predict(weights)
        for row in np.flatnonzero(folds == fold):
            found[row] = mean[row]
    return score(blend.metric, found, blend.truth)


def fit_weights(loss: Callable[[np.ndarray], float], count: int) -> np.ndarray:
    """Weights (count,), 0 or more and of sum 1, that make the loss small: equal ones where nothing does better.

    From the best point of a lattice, weight goes from one run to another while that helps, in ever smaller shares. It
    needs no gradient, for a metric such as accuracy has none, and finds the minimum of a convex and smooth loss.
    """
    best = np.full(count, 1 / count)
    least = loss(best)
    for weights in _lattice(count):
        value = loss(weights)
        if value < least - 1e-12:
            best, least = weights, value
    step = 0.25
    while step >= FINEST:
        moved = False
        for giver, taker in permutations(range(count), 2):
            share = min(step, best[giver])
            if share <= 0:
                continue
            weights = best.copy()
            weights[giver] -= share
            weights[taker] += share
            value = loss(weights)
            if value < least - 1e-12:
                best, least, moved = weights, value, True
        step = step if moved else step / 2
    return best.clip(0) / best.clip(0).sum()


def _lattice(count: int) -> Iterator[np.ndarray]:
    """Weights that are multiples of 1/m, for the largest m up to 20 that gives no more than STARTS of them."""
    parts = max(m for m in range(1, 21) if m == 1 or math.comb(m + count - 1, count - 1) <= STARTS)
    for chosen in combinations_with_replacement(range(count), parts):
        yield np.bincount(chosen, minlength=count) / parts
