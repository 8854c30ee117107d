"""Folds: an integer per row. Fold k validates the rows numbered k and trains on all others; -1 is always trained on."""

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from seqformer.data.manifest import as_text, plain_text
from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars

Kind = Literal["kfold", "stratified", "group", "stratified_group", "column"]
TRAIN_ONLY = -1


def assign_folds(
    table: "polars.DataFrame",
    kind: Kind,
    n: int = 5,
    by: str | None = None,
    stratify: str | None = None,
    valid: list | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Fold number (rows,) of each row of a manifest.

    ``kfold`` shuffles; ``stratified`` keeps the shares of the classes in column ``by``; ``group`` keeps rows of one
    value of ``by`` together; ``stratified_group`` does both, classes from ``stratify``. ``column`` takes the folds
    from column ``by``: its whole numbers as they are or, with ``valid``, one fold of the rows that hold a listed value.
    Raises InputError when a column is missing or there are fewer rows, groups or classes than folds need.
    """
    for column in _columns_needed(kind, by, stratify):
        if column not in table.columns:
            raise InputError(f"folds: the manifest has no column {column!r}; {nearest(column, table.columns)}")
        if table[column].null_count():
            ids = table.filter(table[column].is_null())["id"].to_list()
            raise InputError(f"folds: column {column!r} is empty for {first_few(ids)}")
    if kind == "column":
        return _from_column(table[by], valid)
    folds = _split(table, kind, n, by, stratify, seed)
    for fold in np.flatnonzero(np.bincount(folds, minlength=n) == 0):
        raise InputError(f"folds: {kind} by {by!r} leaves fold {fold} of {n} without rows; choose a smaller n")
    return folds


def _columns_needed(kind: str, by: str | None, stratify: str | None) -> list[str]:
    kinds = {"kfold": {}, "stratified": {"by": by}, "group": {"by": by}, "column": {"by": by}}
    kinds["stratified_group"] = {"by": by, "stratify": stratify}
    if kind not in kinds:
        raise InputError(f"folds: unknown kind {kind!r}; {nearest(kind, kinds)}")
    for argument, column in kinds[kind].items():
        if column is None:
            raise InputError(f"folds: kind {kind!r} needs {' and '.join(kinds[kind])}: {argument} is not given")
    return list(kinds[kind].values())


def _split(table, kind: Kind, n: int, by: str | None, stratify: str | None, seed: int) -> np.ndarray:
    from sklearn import model_selection

    groups = as_text(table[by]).to_numpy() if kind in ("group", "stratified_group") else None
    classes = {"stratified": by, "stratified_group": stratify}.get(kind)
    classes = as_text(table[classes]).to_numpy() if classes else np.zeros(table.height)
    unit, count = (f"values of {by!r}", len(set(groups.tolist()))) if groups is not None else ("rows", table.height)
    if n < 2 or count < n:
        raise InputError(
            f"folds: n is {n}, with {count} {unit}; n must be 2 or more, and no more than there are {unit}"
        )
    name = {"kfold": "KFold", "stratified": "StratifiedKFold", "group": "GroupKFold"}.get(kind, "StratifiedGroupKFold")
    splitter = getattr(model_selection, name)(n_splits=n, shuffle=True, random_state=seed)
    folds = np.full(table.height, TRAIN_ONLY)
    with warnings.catch_warnings():
        # A class with fewer rows than folds is spread as far as it goes: scikit-learn warns, the fold table shows it.
        warnings.filterwarnings("ignore", message="The least populated class")
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        try:
            for fold, (_, rows) in enumerate(splitter.split(np.zeros(table.height), classes, groups)):
                folds[rows] = fold
        except ValueError as error:
            raise InputError(f"folds: {error}") from error
    return folds


def _from_column(column: "polars.Series", valid: list | None) -> np.ndarray:
    if valid is not None:
        names, wanted = as_text(column), {plain_text(value) for value in valid}
        if not wanted:
            raise InputError(f"folds: valid is empty; list the values of {column.name!r} to validate on")
        present = set(names.unique().to_list())
        for value in sorted(wanted - present):
            raise InputError(f"folds: no row has {column.name} = {value!r}; {nearest(value, present)}")
        return np.where(names.is_in(sorted(wanted)).to_numpy(), 0, TRAIN_ONLY)
    if not column.dtype.is_integer():
        raise InputError(
            f"folds: column {column.name!r} holds {column.dtype}; whole numbers, or list its values in valid"
        )
    folds = column.cast(int).to_numpy()
    present = sorted(set(folds[folds != TRAIN_ONLY].tolist()))
    if present != list(range(len(present))) or not present:
        found = first_few(present) or "only -1"
        raise InputError(f"folds: column {column.name!r} holds {found}; expected 0, 1, ... (-1: always trained on)")
    return folds


def fold_names(folds: np.ndarray, use: int | str) -> list[str]:
    """The folds a run trains: ``use`` is a fold number, ``all`` or ``full`` (one model on everything)."""
    count = int(folds.max()) + 1
    if use == "full":
        return ["full"]
    if use == "all":
        return [str(fold) for fold in range(count)]
    if isinstance(use, int) and 0 <= use < count:
        return [str(use)]
    raise InputError(f"folds.use: found {use!r}; expected 0 to {count - 1}, 'all' or 'full'")


def folder_of(name: str) -> str:
    """The folder of a fold in its run's, by its name: a number, or full."""
    return name if name == "full" else f"fold{name}"


def split_rows(folds: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to validate on. Raises InputError when fold ``name`` would have no row of a kind."""
    if name == "full":
        return np.arange(len(folds)), np.arange(0)
    train, valid = np.flatnonzero(folds != int(name)), np.flatnonzero(folds == int(name))
    if not len(train) or not len(valid):
        raise InputError(f"fold {name}: {len(train)} rows to train on and {len(valid)} to validate on")
    return train, valid
