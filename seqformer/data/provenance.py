"""Where labels that a model made come from, and the proof that a fold may be trained on them.

``seqformer pseudo`` writes what is checked here. A pseudo-labelled row says which fold labelled it (``labelled_fold``)
and what that fold may have seen (``labelled_on``, a fingerprint of row ids); a target column ``<name>`` of a run's own
rows has a column ``<name>_labelled_on`` beside it. Fold k is trained only on labels of a model that was trained on the
rows that fold k trains on, so that nothing of its validation rows can have reached them.
"""

from typing import TYPE_CHECKING

import numpy as np

from seqformer.data.manifest import as_text
from seqformer.data.targets import fingerprint
from seqformer.errors import InputError, first_few

if TYPE_CHECKING:
    import polars

COLUMNS = ("labelled_id", "labelled_by", "labelled_fold", "labelled_on")
OWN = "_labelled_on"


def trained_on(ids: "polars.Series", folds: np.ndarray, name: str) -> str:
    """Fingerprint of all rows that a fold may train on. Rows above a limit in seconds count: none is validated."""
    return fingerprint(ids.to_list() if name == "full" else ids.filter(folds != int(name)).to_list())


def check_own_targets(table: "polars.DataFrame", folds: np.ndarray) -> None:
    """Raise InputError when a target made of out-of-fold predictions is none of them, by the folds (rows,) given.

    Each value must come from a model trained on the rows that the row's own fold trains on, so without the row itself.
    """
    for proof in (name for name in table.columns if name.endswith(OWN)):
        column = proof.removesuffix(OWN)
        if column not in table.columns:
            raise InputError(f"column {proof!r} is about a column {column!r}, which is not there")
        for fold in sorted(set(folds.tolist())):
            rows = table.filter((folds == fold) & table[column].is_not_null().to_numpy())
            wanted = trained_on(table["id"], folds, str(fold)) if fold >= 0 else ""
            bad = rows.filter((rows[proof] != wanted).fill_null(True))
            if bad.height:
                place = f"validated in fold {fold}" if fold >= 0 else "always trained on"
                raise InputError(f"column {column!r} is not out of fold for {bad.height} rows {place}: its model was "
                                 f"trained on other rows than that fold is: {first_few(bad['id'])}")  # fmt: skip


def pseudo_rows(
    labels: "list[tuple[str, polars.DataFrame]]",
    table: "polars.DataFrame",
    folds: np.ndarray,
    name: str,
    target: str,
    group: str | None = None,
) -> "polars.DataFrame | None":
    """The pseudo-labelled rows that a fold is trained on beside its own, None without any manifest of them.

    ``labels`` are those manifests and their paths. ``full`` validates nothing: it takes the labels of a fold full or,
    without, those of every fold, each row's weight shared among them. ``group`` is the column that keeps rows together.
    Raises InputError naming manifest and rows.
    """
    import polars

    if not labels:
        return None
    found = [_fold_rows(path, rows, table, folds, name, target, group) for path, rows in labels]
    rows = polars.concat(found, how="diagonal_relaxed")
    twice = rows["id"].is_duplicated() | rows["id"].is_in(table["id"].implode())
    if twice.any():
        raise InputError(f"data.pseudo: ids are there twice: {first_few(rows['id'].filter(twice))}")
    if name == "full":
        weight = polars.col("weight").fill_null(1.0) if "weight" in rows.columns else polars.lit(1.0)
        rows = rows.with_columns(weight=weight.cast(float) / polars.len().over("labelled_id"))
    return rows


def join_rows(table: "polars.DataFrame", extra: "polars.DataFrame | None") -> "polars.DataFrame":
    """Rows of a fold and the pseudo-labelled ones, in the columns of the first; a missing weight is 1."""
    import polars

    if extra is None:
        return table
    if "weight" in extra.columns and "weight" not in table.columns:
        table = table.with_columns(weight=polars.lit(1.0))
    shared = [name for name in table.columns if name in extra.columns]
    try:
        extra = extra.select(polars.col(name).cast(table.schema[name]) for name in shared)
    except polars.exceptions.PolarsError as error:
        raise InputError(f"data.pseudo: labels are of another type: {' '.join(str(error).split())[:200]}") from error
    joined = polars.concat([table, extra], how="diagonal")
    return joined.with_columns(polars.col("weight").fill_null(1.0)) if "weight" in joined.columns else joined


def _fold_rows(path, rows, table, folds, name, target, group) -> "polars.DataFrame":

    for column in (*COLUMNS, target):
        if column not in rows.columns or rows[column].null_count():
            fault = "is empty in some rows" if column in rows.columns else "is missing"
            raise InputError(f"{path}: column {column!r} {fault}; pseudo-labels are made by: seqformer pseudo")
    own = rows.filter(as_text(rows["labelled_fold"]) == name)
    if name == "full":
        return own if own.height else rows
    if not own.height:
        raise InputError(f"{path} has no row labelled by fold {name}")
    wanted = trained_on(table["id"], folds, name)
    foreign = own.filter(own["labelled_on"] != wanted)
    if foreign.height:
        raise InputError(f"{path}: {foreign.height} labels of fold {name} are of a model trained on other rows "
                         f"({foreign['labelled_by'][0]}): {first_few(foreign['labelled_id'])}")  # fmt: skip
    held_out = table.filter(folds == int(name))
    _refuse_validated(path, own, held_out, name, group)
    return own


def _refuse_validated(
    path, rows: "polars.DataFrame", held_out: "polars.DataFrame", name: str, group: str | None
) -> None:
    """Raise InputError when a row is one of the validation rows, by id or by what it reads, or of one's group."""
    import polars

    def read(frame: "polars.DataFrame") -> "polars.Series":
        parts = [polars.col(name) if name in frame.columns else polars.lit(None) for name in ("row", "offset")]
        named = [part.cast(polars.String).fill_null("") for part in parts]
        return frame.select(polars.concat_str([polars.col("path"), *named], separator="#").alias("read"))["read"]

    same = {
        "are": rows["labelled_id"].is_in(held_out["id"].implode()) | rows["id"].is_in(held_out["id"].implode()),
        "read the files of": read(rows).is_in(read(held_out).implode()),
    }
    if group is not None and group in rows.columns:
        same[f"have the {group} of"] = as_text(rows[group]).is_in(as_text(held_out[group]).implode())
    for what, bad in same.items():
        if bad.any():
            raise InputError(f"{path}: {bad.sum()} rows {what} rows that fold {name} is validated on: "
                             f"{first_few(rows['labelled_id'].filter(bad))}")  # fmt: skip
