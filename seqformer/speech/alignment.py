"""Frame targets of a hybrid, by the alignment of an earlier run's folds, each of its own training rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqformer.errors import InputError

if TYPE_CHECKING:
    import polars


def align_rows(
    run: str | Path,
    table: "polars.DataFrame",
    column: str = "spoken",
    states: int = 1,
    hop_ms: float | None = None,
    reach_ms: float = 80.0,
) -> "tuple[polars.DataFrame, list[str]]":
    """The rows of a run with one column more, see ``seqformer.data.states``, and names of rows that did not align.

    Each finished fold of the run aligns the rows that it may be trained on, and no others. With CTC frames are
    ``hop_ms`` apart (default: as in the run); a unit has ``states`` states and reaches up to ``reach_ms`` beyond its
    peak, the rest is silence. A hybrid aligns its own states, and its column is replaced. Frames of a row that does
    not align are not scored. Raises InputError when the run is neither, or rows of it are missing.
    """
    import polars

    from seqformer.cli import open_run
    from seqformer.data.provenance import trained_on
    from seqformer.data.states import TEXT
    from seqformer.oof import require_whole
    from seqformer.predict import load_targets, main_head

    trained = open_run(Path(run))
    target, known = main_head(trained.config.head)[1], require_whole(trained)
    if column in table.columns and column != target:
        raise InputError(f"the rows have a column {column!r} already; name another")
    rows = table.select("id").join(known, on="id", how="left", maintain_order="left")
    if known.height > rows["fold"].count() or target not in table.columns:
        raise InputError(f"the rows are not those of {run}, with their {target!r}: {known.height} are wanted, "
                         f"{rows['fold'].count()} are there")  # fmt: skip
    texts = table[target].struct.field(TEXT) if isinstance(table.schema[target], polars.Struct) else table[target]
    table, fields, failed = table.with_columns(texts.alias(column)), {TEXT: texts}, []
    for folder in trained.names:
        name = folder.removeprefix("fold")
        own = rows["fold"].is_not_null() & (rows["fold"].cast(polars.String) != name)
        found, lost = _align_fold(trained, folder, table.filter(own), column, (states, hop_ms, reach_ms))
        proof = load_targets(trained.folder / folder).fitted_on
        if trained.config.data.max_seconds is None and proof != trained_on(known["id"], known["fold"].to_numpy(), name):
            raise InputError(f"{run}: {folder} was trained on other rows than it says")
        fields[proof] = polars.Series([found.get(one) for one in table["id"]], dtype=polars.List(polars.Int32))
        failed += [f"{row_id} ({folder})" for row_id in lost]
    structs = polars.DataFrame({name: values.alias(name) for name, values in fields.items()}).to_struct(column)
    return table.with_columns(structs), failed


def _align_fold(run, folder: str, table, column: str, given: tuple) -> tuple[dict, list[str]]:
    """{row id: states of its frames} by one fold, and ids of the rows whose text does not fit into their frames."""
    from seqformer.predict import load_fold, main_head, make_dataset
    from seqformer.transcripts import frame_log_probs

    model, targets = load_fold(run.folder / folder, run.config, run.device)
    head, target = main_head(run.config.head)
    place, hop = _aligner(run.folder, model, head, targets.encoders[target], *given)
    config = replace(run.config, dataset={"name": "rows"})  # not strings that it makes up of them
    dataset = make_dataset(config, table, None, model.frontend.rate)
    frames = dict(zip(table["id"], (-(-dataset.frames(0) // hop)).tolist(), strict=True))
    texts, found, lost = dict(zip(table["id"], table[column], strict=True)), {}, []
    for ids, (log_probs,) in frame_log_probs([model], dataset, run.config.data, head):
        for row_id, item in zip(ids, log_probs, strict=True):
            try:
                found[row_id] = place(item, texts[row_id], frames[row_id]).tolist()
            except ValueError:
                found[row_id] = [-1] * frames[row_id]
                lost.append(row_id)
    return found, lost


def _aligner(
    run: Path, model, head: str, encoder, states: int, hop_ms: float | None, reach_ms: float
) -> tuple[Callable[[np.ndarray, str, int], np.ndarray], int]:
    """(log-probabilities, text, frames) -> states of the frames; and the samples from one frame to the next."""
    from seqformer.data.states import States
    from seqformer.data.targets import Units
    from seqformer.decode.align import align
    from seqformer.decode.hmm import Topology, frame_states

    front = model.frontend
    if isinstance(encoder, States):
        return lambda item, text, frames: encoder.align(item, text), front.hop
    if not isinstance(encoder, Units) or not hasattr(front, "hop") or not hasattr(model.heads[head], "log_probs"):
        raise InputError(f"{run} is no run of CTC, or of a hybrid, over audio; one aligns texts to frames")
    hop = front.hop if hop_ms is None else round(front.rate * hop_ms / 1000)
    reach, ratio = reach_ms * front.rate / 1000 / hop, model.backbone.stride * front.hop / hop
    heard = [bool(spelling.strip()) for spelling in encoder.tokenizer.spellings()]  # not a space
    topology = Topology(encoder.size, states)

    def place(item: np.ndarray, text: str, frames: int) -> np.ndarray:
        spans, _ = align(item, encoder.encode(text).tolist())
        return frame_states([span for span in spans if heard[span.unit]], frames, topology, ratio, reach)

    return place, hop
