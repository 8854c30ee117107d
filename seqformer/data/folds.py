"""Folds: an integer per row. Fold k validates the rows numbered k and trains on all others; -1 is always trained on."""

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

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
    needs = {"stratified": [by], "group": [by], "stratified_group": [by, stratify], "column": [by]}.get(kind, [])
    for column in needs:
        if column is None:
            raise InputError(f"folds: kind {kind!r} needs {'by and stratify' if len(needs) > 1 else 'by'}: a column")
        if column not in table.columns:
            raise InputError(f"folds: the manifest has no column {column!r}; {nearest(column, table.columns)}")
        if table[column].null_count():
            ids = table.filter(table[column].is_null())["id"].to_list()
            raise InputError(f"folds: column {column!r} is empty for {first_few(ids)}")
    if kind == "column":
        return _from_column(table, by, valid)
    return _split(table, kind, n, by, stratify, seed)


def _split(table, kind: Kind, n: int, by: str | None, stratify: str | None, seed: int) -> np.ndarray:
    from sklearn import model_selection

    groups = table[by].to_numpy() if kind in ("group", "stratified_group") else None
    classes = {"stratified": by, "stratified_group": stratify}.get(kind)
    classes = table[classes].cast(str).to_numpy() if classes else np.zeros(table.height)
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
        try:
            for fold, (_, rows) in enumerate(splitter.split(np.zeros(table.height), classes, groups)):
                folds[rows] = fold
        except ValueError as error:
            raise InputError(f"folds: {error}") from error
    return folds


def _from_column(table, by: str, valid: list | None) -> np.ndarray:
    column = table[by]
    if valid is not None:
        wanted = {str(value) for value in valid}
        present = set(column.cast(str).unique().to_list())
        for value in sorted(wanted - present):
            raise InputError(f"folds: no row has {by} = {value!r}; {nearest(value, present)}")
        return np.where(column.cast(str).is_in(sorted(wanted)).to_numpy(), 0, TRAIN_ONLY)
    if not column.dtype.is_integer():
        raise InputError(f"folds: column {by!r} holds {column.dtype}; whole numbers, or list its values in valid")
    folds = column.to_numpy()
    present = sorted(set(folds[folds != TRAIN_ONLY].tolist()))
    if present != list(range(len(present))) or not present:
        raise InputError(f"folds: column {by!r} holds {first_few(present)}; expected 0, 1, ... (-1: always trained on)")
    return folds.astype(np.int64)


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


def split_rows(folds: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to validate on. Raises InputError when fold ``name`` would have no row of a kind."""
    if name == "full":
        return np.arange(len(folds)), np.arange(0)
    train, valid = np.flatnonzero(folds != int(name)), np.flatnonzero(folds == int(name))
    if not len(train) or not len(valid):
        raise InputError(f"fold {name}: {len(train)} rows to train on and {len(valid)} to validate on")
    return train, valid
