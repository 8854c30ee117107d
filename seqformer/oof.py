"""The out-of-fold predictions of a run, and the proof that they are: what each fold was trained on, by fingerprint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.folds import fold_names, folder_of
from seqformer.data.provenance import trained_on
from seqformer.errors import InputError, first_few
from seqformer.predict import TrainedRun, load_targets

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class OutOfFold:
    """Rows sorted by id: ids, names of folds, predictions of the main head and truths, one entry a row each."""

    run: TrainedRun
    ids: list[str]
    folds: np.ndarray
    predictions: list
    truth: list


def read_folds(run: TrainedRun) -> "polars.DataFrame":
    """The rows of a run: id and fold, -1 where a row is trained on in every fold."""
    import polars

    try:
        return polars.read_parquet(run.folder / "folds.parquet", columns=["id", "fold"])
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise InputError(f"{run.folder / 'folds.parquet'} is missing or damaged") from error


def require_whole(run: TrainedRun) -> "polars.DataFrame":
    """The rows of a run (id, fold), checked. Raises InputError unless all folds that its config asks for are finished
    and were trained on the rows that folds.parquet says.
    """
    rows = read_folds(run)
    names = fold_names(rows["fold"].to_numpy(), run.config.folds.use)
    left = [name for name in names if folder_of(name) not in run.names]
    if left:
        raise InputError(f"{run.folder}: fold {first_few(left)} is not finished; go on with: seqformer train")
    for name in names:
        fitted_on = load_targets(run.folder / folder_of(name)).fitted_on
        # With a limit in seconds the fold left some rows out, and which is not known here.
        if run.config.data.max_seconds is None and fitted_on != trained_on(rows["id"], rows["fold"].to_numpy(), name):
            raise InputError(f"{run.folder}: fold {name} was trained on other rows than folds.parquet says")
    return rows


def read_out_of_fold(folder: str | Path) -> OutOfFold:
    """The out-of-fold predictions of a finished run.

    Raises InputError when a row is there twice, is missing, or is predicted by a fold that was trained on it.
    """
    import polars

    run = TrainedRun(folder, "cpu")
    rows, path = require_whole(run), run.folder / "oof.parquet"
    if run.config.folds.use == "full":
        raise InputError(
            f"{run.folder} has a fold full only: it was trained on all rows, and predicts none out of fold"
        )
    try:
        table = polars.read_parquet(path).sort("id")
    except Exception as error:
        raise InputError(f"{path} is missing or damaged; go on with: seqformer train") from error
    twice = table["id"].filter(table["id"].is_duplicated()).unique(maintain_order=True)
    if len(twice):
        raise InputError(f"{path}: {len(twice)} rows are there twice: {first_few(twice)}")
    if run.config.dataset["name"] == "rows":  # others may make their examples up
        _check_rows(path, table, rows, run)
    columns = (_values(table[name]) for name in ("prediction", "truth"))
    return OutOfFold(run, table["id"].to_list(), np.asarray(table["fold"].to_list()), *columns)


def _check_rows(path: Path, table: "polars.DataFrame", rows: "polars.DataFrame", run: TrainedRun) -> None:
    import polars

    own = table.join(rows.with_columns(own=polars.col("fold").cast(polars.String)).drop("fold"), on="id", how="left")
    foreign = own["own"].is_null()
    if foreign.any():
        raise InputError(f"{path}: {foreign.sum()} ids are no rows of the run: {first_few(own['id'].filter(foreign))}")
    known = own["id"].filter(own["own"] != own["fold"])
    if len(known):
        raise InputError(
            f"{path}: {len(known)} rows were trained on by the fold that predicts them: {first_few(known)}"
        )
    names = [name.removeprefix("fold") for name in run.names]
    wanted = rows.filter(rows["fold"].cast(polars.String).is_in(names)).join(table, on="id", how="anti")
    if wanted.height:
        raise InputError(f"{path}: {wanted.height} validated rows are missing: {first_few(wanted['id'])}")


def _values(column: "polars.Series") -> list[Any]:
    """A column as a list of texts, numbers or arrays."""
    return [np.asarray(value) if isinstance(value, list) else value for value in column.to_list()]


def same_truth(one: list, two: list) -> bool:
    """Whether two lists of texts, numbers or arrays are equal, missing values included."""
    if len(one) != len(two):
        return False
    if one and isinstance(one[0], str):
        return one == two
    pairs = zip(one, two, strict=True)
    return all(np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True) for a, b in pairs)
