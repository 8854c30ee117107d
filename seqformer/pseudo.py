"""Labels made by a run, with their provenance: of other rows by each fold's model, of its own out of fold."""

from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.config import Run
from seqformer.data.folds import folder_of
from seqformer.data.manifest import as_text, read_manifest
from seqformer.data.provenance import OWN, trained_on
from seqformer.data.targets import Classes, Units
from seqformer.errors import InputError, first_few
from seqformer.oof import OutOfFold, require_whole
from seqformer.predict import TrainedRun, load_targets, main_head, score

if TYPE_CHECKING:
    import polars


def label_rows(
    run: TrainedRun, table: "polars.DataFrame", column: str | None = None, threshold: float = 0.0, tta: bool = True
) -> tuple["polars.DataFrame", int, int]:
    """Pseudo-labels: (one row for each row and fold, pairs below ``threshold``, pairs left out for their group).

    The label, in ``column`` (default: the run's target), is the name of the likeliest class, the class of each frame, a
    value, values or a text. ``confidence`` is the largest class probability (its mean over frames), by which ``weight``
    is multiplied; values and texts have none. Every label and confidence is of one fold's model alone: a measure across
    folds would let each fold's validation rows choose its labels. Raises InputError when a row was trained on by a fold
    that would label it.
    """
    import polars

    column = column or main_head(run.config.head)[1]
    if column in table.columns and table[column].null_count() < table.height:
        raise InputError(f"the rows have a column {column!r} already; drop it, or name another: --column")
    found, low, grouped = [], 0, 0
    for name, asked, proof in rows_to_label(run, table):
        grouped += table.height - asked.height
        if not asked.height:
            continue
        labelled = _label_fold(run, name, asked, column, tta)
        if threshold and labelled["confidence"].null_count():
            raise InputError(f"--threshold is for probabilities of classes; the target {column!r} has none")
        kept = labelled.filter(labelled["confidence"].fill_null(1.0) >= threshold)
        low += labelled.height - kept.height
        found.append(with_provenance(run, name, kept, proof))
    if not sum(part.height for part in found):
        raise InputError(f"no label is left: {low} are below the threshold {threshold}, {grouped} of validated groups")
    return polars.concat(found), low, grouped


def rows_to_label(run: TrainedRun, table: "polars.DataFrame") -> "list[tuple[str, polars.DataFrame, str]]":
    """For each finished fold: its name, those of the rows that it may label, and the proof of what it was trained on.

    It may not label rows of a group that it is validated on. Raises InputError when it was trained on any of the rows.
    """
    rows = require_whole(run)
    _refuse_seen(run, rows, table)
    groups, found = _groups(run.config, rows, table), []
    for name in (folder.removeprefix("fold") for folder in run.names):
        asked = table.filter(~groups[name]) if name in groups else table
        found.append((name, asked, trained_on(rows["id"], rows["fold"].to_numpy(), name)))
    return found


def with_provenance(run: TrainedRun, name: str, labelled: "polars.DataFrame", proof: str) -> "polars.DataFrame":
    """Labelled rows with ids of their own, and what ``seqformer.data.provenance`` asks for."""
    import polars

    return labelled.with_columns(
        id=polars.col("id") + f"@{folder_of(name)}",
        labelled_id=polars.col("id"),
        labelled_by=polars.lit(f"{run.config.run}/{folder_of(name)}"),
        labelled_fold=polars.lit(name),
        labelled_on=polars.lit(proof),
    )


def _label_fold(run: TrainedRun, name: str, table: "polars.DataFrame", column: str, tta: bool) -> "polars.DataFrame":
    """The rows with one fold's labels, confidence and weight."""
    import polars

    folder = folder_of(name)
    predictions = run.predict_fold(folder, table, tta)
    encoder = load_targets(run.folder / folder).encoders[main_head(run.config.head)[1]]
    labels = [_label(encoder, predictions[row_id]) for row_id in table["id"]]
    confidence = polars.Series([sure for _, sure in labels], dtype=polars.Float64)
    weight = polars.col("weight") if "weight" in table.columns else polars.lit(1.0)
    return table.with_columns(
        polars.Series(column, [label for label, _ in labels]),
        weight=weight * confidence.fill_null(1.0),
        confidence=confidence,
    )


def own_targets(
    oof: OutOfFold, table: "polars.DataFrame", column: str | None = None, metric: bool = False
) -> "polars.DataFrame":
    """The rows of a run with one column more, of its out-of-fold predictions or, with ``metric``, of the run's metric
    on each row alone; a target for a second stage. A row that no fold validated has none.

    The proof that each is out of fold is the column ``<column>_labelled_on``. Raises InputError when rows are missing.
    """
    import polars

    rows, name = require_whole(oof.run), oof.run.config.metric["name"]
    column = column or (name if metric else "oof")
    if column in table.columns:
        raise InputError(f"the rows have a column {column!r} already; name another: --column")
    missing = sorted(set(oof.ids) - set(table["id"]))
    if missing:
        raise InputError(f"{len(missing)} validated rows of {oof.run.folder} are missing: {first_few(missing)}")
    if metric:
        pairs = zip(oof.predictions, oof.truth, strict=True)
        scores = [score(oof.run.config.metric, [guess], [truth]) for guess, truth in pairs]
        values = polars.Series(column, scores, dtype=polars.Float64).fill_nan(None)
    else:
        values = polars.Series(column, [v if isinstance(v, str) else np.asarray(v).tolist() for v in oof.predictions])
        if np.ndim(oof.predictions[0]) == 1 and len({len(v) for v in oof.predictions}) == 1:
            values = values.cast(polars.Array(polars.Float32, len(oof.predictions[0])))  # of the item, not of frames
    folds = rows["fold"].to_numpy()
    proofs = {name: trained_on(rows["id"], folds, name) for name in set(oof.folds.tolist())}
    made = polars.DataFrame({"id": oof.ids, column: values, f"{column}{OWN}": [proofs[name] for name in oof.folds]})
    return table.join(made, on="id", how="left", maintain_order="left")


def _label(encoder: Any, prediction: Any) -> tuple[Any, float | None]:
    """A prediction as a manifest has it, and how sure of it the model is."""
    if isinstance(encoder, Units):
        return prediction, None
    values = np.asarray(prediction)
    if isinstance(encoder, Classes):
        return encoder.classes[int(values.argmax())], float(values.max())
    if encoder.whole:
        return values.argmax(axis=-1).tolist(), float(values.max(axis=-1).mean()) if len(values) else 0.0
    shape = {"": (), " ": (encoder.size,), "T": (-1, encoder.size)[: 1 + (encoder.size > 1)]}[encoder.axes]
    return values.reshape(shape).tolist(), None


def _refuse_seen(run: TrainedRun, rows: "polars.DataFrame", table: "polars.DataFrame") -> None:
    for folder in run.names:
        name = folder.removeprefix("fold")
        seen = rows["id"] if name == "full" else rows["id"].filter(rows["fold"] != int(name))
        known = table["id"].filter(table["id"].is_in(seen.implode()))
        if len(known):
            raise InputError(f"{len(known)} rows were trained on by {folder} of {run.folder}: {first_few(known)}")


def _groups(config: Run, rows: "polars.DataFrame", table: "polars.DataFrame") -> dict[str, "polars.Series"]:
    """For each fold, which rows (n,) are of a group that it is validated on, where folds keep groups together."""
    by = config.folds.by if "group" in config.folds.kind else None
    if by is None or by not in table.columns:
        return {}
    own = read_manifest(config.data.manifest, config.data.where).join(rows, on="id", how="inner")
    names = sorted(set(rows["fold"].to_list()) - {-1})
    groups = {name: as_text(own.filter(own["fold"] == name)[by]).implode() for name in names}
    return {str(name): as_text(table[by]).is_in(values) for name, values in groups.items()}
