"""What runs got right, class by class and user by user: ``python -m competitions.hapt.report runs/hapt ...``.

Reads the out-of-fold predictions of each run; those of several runs, such as seeds, are averaged. Frames that nobody
has labelled are not counted.
"""

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.hapt.prepare import CLASSES


def read_runs(runs: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{recording: (mean probabilities (T, 12), truth (T,))}. Raises InputError when runs have other recordings."""
    import polars

    found: dict[str, tuple[list, np.ndarray]] = {}
    for run in runs:
        path = run / "oof.parquet"
        if not path.is_file():
            raise seqformer.InputError(f"no finished fold in {run}: {path} is missing")
        for row in polars.read_parquet(path).iter_rows(named=True):
            found.setdefault(row["id"], ([], np.asarray(row["truth"])))[0].append(np.asarray(row["prediction"]))
    for name, (predictions, _) in found.items():
        if len(predictions) != len(runs):
            raise seqformer.InputError(f"{name} is predicted by {len(predictions)} of {len(runs)} runs")
    return {name: (np.mean(predictions, axis=0), truth) for name, (predictions, truth) in found.items()}


def confusion(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Frames (12, 12) by true and by predicted class; truth -1 is not counted."""
    pairs = truth[truth >= 0] * len(CLASSES) + scores.argmax(axis=1)[truth >= 0]
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)


def f1_scores(table: np.ndarray) -> np.ndarray:
    """F1 (12,) of each class of a confusion table, NaN where a class is neither there nor predicted."""
    either = table.sum(axis=0) + table.sum(axis=1)
    return np.where(either > 0, 2 * table.diagonal() / np.maximum(either, 1), np.nan)


def print_report(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Accuracy and macro F1 of all and of each user, F1 of each class, and the largest confusions."""
    tables = {name: confusion(*pair) for name, pair in found.items()}
    users = sorted({re.sub(r".*_", "", name) for name in tables})
    groups = [(user, sum(table for name, table in tables.items() if name.endswith(user))) for user in users]
    total = sum(tables.values())
    print(f"{'':8}  accuracy  macro F1   frames")
    for name, table in [*groups, ("all", total)]:
        print(f"{name:8}  {table.trace() / table.sum():8.4f}  {np.nanmean(f1_scores(table)):8.4f}  {table.sum():7,}")
    print("F1: " + ", ".join(f"{name} {score:.3f}" for name, score in zip(CLASSES, f1_scores(total), strict=True)))
    wrong = total - np.diag(total.diagonal())
    for place in np.argsort(-wrong, axis=None)[:5]:
        true, guess = divmod(int(place), len(CLASSES))
        print(f"{CLASSES[true]} taken for {CLASSES[guess]}: {wrong[true, guess]:,} frames")


def main(runs: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/hapt.")]) -> None:
    """Accuracy and F1 of runs by user and class; several runs are averaged."""
    print_report(read_runs(runs))


if __name__ == "__main__":
    seqformer.run_command(main)
