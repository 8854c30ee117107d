"""Several runs together: seeds of one config, or different models, equally or by the weights of a blend."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.consensus import consensus
from seqformer.errors import InputError
from seqformer.predict import TrainedRun, load_targets, main_head, pool

if TYPE_CHECKING:
    import polars


class Ensemble:
    """Runs and their weights (sum 1; default: equal).

    Raises InputError when they differ in the target, its classes or the metric.
    """

    def __init__(self, runs: Sequence[TrainedRun], weights: Sequence[float] | None = None):
        self.runs = list(runs)
        self.weights = [1 / len(self.runs)] * len(self.runs) if weights is None else list(weights)
        check_alike(self.runs)

    def predict(
        self, table: "polars.DataFrame", tta: bool = True, decoder: BeamDecoder | None = None
    ) -> dict[str, Any]:
        """{row id: prediction}: the weighted mean of the runs' own; of texts, the consensus of all that they vote."""
        votes = [run.votes(table, tta, decoder) for run in self.runs]
        found = {}
        for row_id, first in votes[0].items():
            cast = [vote[row_id] for vote in votes]
            if isinstance(first[0], str):
                found[row_id] = consensus([text for texts in cast for text in texts])
            else:
                found[row_id] = self._mean(row_id, [pool(values) for values in cast])
        return found

    def _mean(self, row_id: str, values: list) -> np.ndarray:
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            raise InputError(f"row {row_id}: the runs predict different shapes: {sorted(shapes)}")
        return sum(np.asarray(value) * weight for value, weight in zip(values, self.weights, strict=True))

    def score(
        self,
        table: "polars.DataFrame",
        seen: bool = False,
        tta: bool = True,
        decoder: BeamDecoder | None = None,
    ) -> tuple[str, float, int]:
        """As of a TrainedRun; a row that any fold of any run was trained on is refused, unless ``seen`` allows it."""
        for run in self.runs:
            run.check_scored(table, seen)
        return self.runs[0].score_of(self.predict(table, tta, decoder), table)


def check_alike(runs: Sequence[TrainedRun]) -> None:
    """Raise InputError unless runs learn one target, with the same classes, and have one metric."""
    first = runs[0]
    for run in runs[1:]:
        pairs = {
            "metric": (first.config.metric, run.config.metric),
            "target": (main_head(first.config.head)[1], main_head(run.config.head)[1]),
            "classes of the target": (_classes(first), _classes(run)),
        }
        for what, (one, two) in pairs.items():
            if one != two:
                raise InputError(f"{first.folder} and {run.folder} differ in the {what}: {one} and {two}")


def _classes(run: TrainedRun) -> list[str] | str:
    """Names of the classes of a run's main target, or the kind that it is without any."""
    encoder = load_targets(run.folder / run.names[0]).encoders[main_head(run.config.head)[1]]
    return getattr(encoder, "classes", type(encoder).__name__)


def describe_run(run: TrainedRun, place: Path) -> dict[str, Any]:
    """What a blend file remembers of a run: its folder as seen from ``place``, and what must not change."""
    folds = {name: load_targets(run.folder / name).fitted_on for name in run.names}
    return {
        "run": Path(os.path.relpath(run.folder.resolve(), place.resolve())).as_posix(),
        "trained_on": folds,
        "oof": hashlib.sha256((run.folder / "oof.parquet").read_bytes()).hexdigest(),
    }


def read_blend(path: str | Path, open_run: Callable[[Path], TrainedRun] = TrainedRun) -> Ensemble:
    """The runs of a blend file that have a weight. Raises InputError when a run changed after the file was made."""
    path = Path(path)
    try:
        found = json.loads(path.read_text())
        entries = [(entry["run"], float(entry["weight"]), entry) for entry in found["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no blend file: {error}") from error
    weights = [weight for _, weight, _ in entries]
    if not entries or min(weights) < 0 or not abs(sum(weights) - 1) < 1e-6:
        raise InputError(f"{path}: weights {weights}; expected numbers from 0 that add up to 1")
    runs = [open_run(path.parent / place) for place, _, _ in entries]
    for run, (_, _, entry) in zip(runs, entries, strict=True):
        now = describe_run(run, path.parent)
        if any(entry.get(key) != now[key] for key in ("trained_on", "oof")):
            raise InputError(f"{run.folder} changed after {path} was made; blend again")
    used = [(run, weight) for run, weight in zip(runs, weights, strict=True) if weight]
    return Ensemble(*zip(*used, strict=True))
