"""Predictions on the truth's scale: ``python -m competitions.openvaccine.calibrate RUN MANIFEST PREDICTIONS OUT``.

A loss that weighs values by their stated errors counts the largest ones least, so predictions come out a little low.
One line per target, truth = a prediction + b, is fitted on the out-of-fold predictions of RUN for rows with SN_filter 1
(the others are mostly noise, which would flatten it), and applied to PREDICTIONS. No test row is looked at for it;
where MANIFEST has their truth, their score is printed before and after.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer

SCORED = [0, 1, 3]  # of prepare.TARGETS
Values = dict[str, np.ndarray]  # id -> (positions, 5)


def read_predictions(path: Path) -> Values:
    """{id: (T, 5)} of a file with columns id and prediction. Raises InputError."""
    table = seqformer.read_table(path, {"id": str, "prediction": list[list[float]]})
    return {name: np.array(values) for name, values in zip(table["id"], table["prediction"].to_list(), strict=True)}


def read_truth(manifest: Path, where: dict) -> Values:
    """{id: (scored positions, 5)} of the rows that have a truth."""
    rows = seqformer.read_manifest(manifest, where).select("id", "degradation").drop_nulls("degradation")
    pairs = zip(rows["id"], rows["degradation"].to_list(), strict=True)
    return {name: np.array([value for value in values if value is not None]) for name, values in pairs}


def joined(predictions: Values, truth: Values) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths (N, 5) of all scored positions of the rows in both."""
    names = sorted(predictions.keys() & truth.keys())
    if not names:
        raise seqformer.InputError("no predicted row has a truth in the manifest")
    return tuple(np.concatenate(some) for some in zip(
        *((predictions[name][: len(truth[name])], truth[name]) for name in names), strict=True
    ))  # fmt: skip


def mcrmse(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the scored targets of the root mean squared error."""
    return float(np.sqrt(np.square(found - truth).mean(axis=0))[SCORED].mean())


def fit_lines(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, 5): slope and offset of each target, by least squares."""
    return np.array([np.polyfit(found[:, k], truth[:, k], 1) for k in range(truth.shape[1])]).T


def calibrate(run: Path, manifest: Path, predictions: Path, out: Path) -> None:
    """Fit the lines out of fold, apply them, write OUT and print what they change. Raises InputError."""
    import polars

    held_out = joined(read_predictions(run / "oof.parquet"), read_truth(manifest, {"split": "train", "SN_filter": 1}))
    slope, offset = fit_lines(*held_out)
    found = read_predictions(predictions)
    changed = {name: slope * values + offset for name, values in found.items()}
    rows = {"id": list(changed), "prediction": [values.tolist() for values in changed.values()]}
    polars.DataFrame(rows).write_parquet(out)
    print("slopes", slope.round(3).tolist(), "offsets", offset.round(3).tolist())
    before, after = mcrmse(*held_out), mcrmse(slope * held_out[0] + offset, held_out[1])
    print(f"out of fold, SN_filter 1: {before:.4f} -> {after:.4f}")
    truth = read_truth(manifest, {"split": "test"})
    if truth:
        print(f"test: {mcrmse(*joined(found, truth)):.4f} -> {mcrmse(*joined(changed, truth)):.4f} -> {out}")


def main(
    run: Annotated[Path, typer.Argument(help="The run whose out-of-fold predictions fit the lines.")],
    manifest: Annotated[Path, typer.Argument(help="The prepared manifest.")],
    predictions: Annotated[Path, typer.Argument(help="What seqformer predict wrote for the test rows.")],
    out: Annotated[Path, typer.Argument(help="The parquet file to write, of the same form.")],
) -> None:
    """Put predictions on the scale of the truth, by out-of-fold predictions."""
    calibrate(run, manifest, predictions, out)


if __name__ == "__main__":
    seqformer.run_command(main)
