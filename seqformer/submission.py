"""Submission files: checked against what is expected, streamed, and written whole or not at all."""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars

LINES = 500_000  # written at a time
FORMATS = {".csv": "csv", ".csv.gz": "gzip", ".parquet": "parquet"}


def write_submission(table: "polars.DataFrame", path: str | Path, sample: "str | Path | polars.DataFrame") -> None:
    """Write one line for each id of a sample submission (a file or a table), in its order and with its columns.

    The first column of the sample is the id. Formats by ending: ``.csv``, ``.csv.gz``, ``.parquet``. Raises
    InputError, with nothing written, on a missing, further or doubled id or column, and on an empty or infinite value.
    """
    import polars

    sample = _read_sample(sample) if isinstance(sample, str | Path) else sample
    for column in sample.columns:
        if column not in table.columns:
            raise InputError(f"the submission has no column {column!r}; {nearest(column, table.columns)}")
    further = [column for column in table.columns if column not in sample.columns]
    if further:
        raise InputError(
            f"the sample submission has no column {first_few(further)}; it has {first_few(sample.columns)}"
        )
    key = sample.columns[0]
    wanted, given = (frame[key].cast(polars.String) for frame in (sample, table))
    _check_ids(wanted, given)
    for name in sample.columns[1:]:
        _check_values(table[name], given)
    ordered = sample.select(key, _=wanted).join(
        table.with_columns(given.alias("_")).drop(key), on="_", how="left", maintain_order="left"
    )
    _write(path, iter([ordered.select(sample.columns)]), ordered.select(sample.columns).schema)


def write_ragged_submission(
    predictions: "Mapping[str, Any] | polars.DataFrame", path: str | Path, rows: "polars.DataFrame", columns: list[str],
    key: str = "id",
) -> None:  # fmt: skip
    """Write one line for each position of each row: the id of the position, and its value in each of ``columns``.

    ``predictions`` is a mapping {id of a row: (T, len(columns))}, which may read on demand, or the table of
    ``seqformer predict``. ``rows`` has the ``id`` of each and what its positions are called: ``id_min`` and ``id_max``,
    the whole numbers from the first to the last position (Ribonanza), or ``frames``, positions from 0, called
    ``<id>_<position>`` (OpenVaccine). ``key`` is the name of the id column written. Memory does not grow with the
    number of lines. Formats and errors as in ``write_submission``; a row's prediction must have all of its positions.
    """
    import polars

    numbered = {"id_min", "id_max"} <= set(rows.columns)
    if not numbered and "frames" not in rows.columns:
        raise InputError(f"the rows have neither id_min and id_max nor frames; found {', '.join(rows.columns)}")
    found = _as_mapping(predictions)
    _check_ids(rows["id"].cast(polars.String), polars.Series(list(found), dtype=polars.String))
    first = rows["id_min"].to_numpy() if numbered else np.zeros(rows.height, dtype=np.int64)
    lengths = rows["id_max"].to_numpy() - first + 1 if numbered else rows["frames"].to_numpy()
    if (lengths < 1).any():
        raise InputError(f"rows without a position: {first_few(rows['id'].filter(lengths < 1))}")
    if numbered:
        _check_ranges(rows["id"].to_numpy(), first, lengths)
    schema = {key: polars.Int64 if numbered else polars.String} | dict.fromkeys(columns, polars.Float32)
    names = rows["id"].cast(polars.String)
    chunks = _ragged_chunks(found, names, first, lengths.astype(np.int64), list(schema), numbered)
    _write(path, chunks, schema)


def _ragged_chunks(found, names, first, lengths, columns, numbered) -> "Iterator[polars.DataFrame]":
    """The lines of the rows, some rows at a time."""
    import polars

    ends = np.cumsum(lengths)
    start = 0
    while start < len(names):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] - lengths[start] + LINES, side="right")))
        chosen, counts = names[start:stop], lengths[start:stop]
        values = [
            _positions(found[name], name, int(count), len(columns) - 1)
            for name, count in zip(chosen, counts, strict=True)
        ]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        if numbered:
            ids = polars.Series(np.repeat(first[start:stop], counts) + within)
        else:
            whole = polars.Series(np.repeat(np.arange(len(chosen)), counts))
            ids = chosen.gather(whole) + "_" + polars.Series(within).cast(polars.String)
        array = np.concatenate(values)
        yield polars.DataFrame({columns[0]: ids} | {name: array[:, i] for i, name in enumerate(columns[1:])})
        start = stop


def _positions(prediction: Any, name: str, count: int, width: int) -> np.ndarray:
    """One row's prediction as (count, width). Raises InputError on another shape, or a value that is no number."""
    array = np.asarray(prediction, dtype=np.float32)
    array = array[:, None] if array.ndim == 1 and width == 1 else array
    if array.shape != (count, width):
        raise InputError(f"row {name}: the prediction has shape {array.shape}, expected {(count, width)}")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"row {name}: the prediction at position {place} is empty or infinite")
    return array


def _as_mapping(predictions) -> Mapping[str, Any]:
    if isinstance(predictions, Mapping):
        return predictions
    for column in ("id", "prediction"):
        if column not in predictions.columns:
            raise InputError(f"the predictions have no column {column!r}; {nearest(column, predictions.columns)}")
    if predictions["id"].is_duplicated().any():
        raise InputError(f"ids predicted twice: {_named(predictions['id'], predictions['id'].is_duplicated())}")
    return _Rows(predictions)


class _Rows(Mapping):
    """{id: prediction} of a table, without a copy of it as Python objects."""

    def __init__(self, table: "polars.DataFrame"):
        self.places, self.values = {name: row for row, name in enumerate(table["id"])}, table["prediction"]

    def __getitem__(self, name: str) -> Any:
        value = self.values[self.places[name]]
        inner = getattr(getattr(value, "dtype", None), "is_nested", bool)()
        return np.stack(value.to_list()) if inner and len(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _check_ids(wanted: "polars.Series", given: "polars.Series") -> None:
    """Raise InputError unless both name the same ids, each once."""
    for ids, where in ((wanted, "expected"), (given, "submitted")):
        twice = ids.is_duplicated()
        if twice.any():
            raise InputError(f"{ids.filter(twice).n_unique()} ids {where} twice: {_named(ids, twice)}")
        if ids.null_count():
            raise InputError(f"{ids.null_count()} ids {where} are empty")
    missing, further = ~wanted.is_in(given.implode()), ~given.is_in(wanted.implode())
    faults = [f"{missing.sum()} expected ids are missing: {_named(wanted, missing)}"] if missing.any() else []
    faults += [f"{further.sum()} ids are not expected: {_named(given, further)}"] if further.any() else []
    if faults:
        raise InputError("; ".join(faults))


def _check_ranges(names: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> None:
    order = np.argsort(first, kind="stable")
    clash = np.flatnonzero(first[order][1:] < (first + lengths)[order][:-1])
    if len(clash):
        one, two = names[order][clash[0]], names[order][clash[0] + 1]
        raise InputError(f"id_min to id_max of {len(clash)} rows overlap: {one} and {two}")


def _check_values(values: "polars.Series", ids: "polars.Series") -> None:
    bad = values.is_null()
    if values.dtype.is_float():
        bad |= ~values.is_finite().fill_null(False)
    if bad.any():
        raise InputError(f"column {values.name!r} is empty or infinite for {bad.sum()} ids: {_named(ids, bad)}")


def _named(ids: "polars.Series", which: "polars.Series") -> str:
    return first_few(ids.filter(which).unique(maintain_order=True))


def _read_sample(path: str | Path) -> "polars.DataFrame":
    import polars

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no sample submission at {path}")
    try:  # a csv as text: an id such as 007 stays what it is
        return polars.read_parquet(path) if path.suffix == ".parquet" else polars.read_csv(path, infer_schema=False)
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error


def _write(path: str | Path, chunks: "Iterator[polars.DataFrame]", schema: Mapping[str, Any]) -> None:
    """Stream tables of one schema into a file. What a chunk raises leaves the file as it was."""
    from polars.io.plugins import register_io_source

    from seqformer.checkpoint import replacing  # brings safetensors, which no import of seqformer should load

    path, faults = Path(path), []
    kind = next((kind for ending, kind in FORMATS.items() if path.name.endswith(ending)), None)
    if kind is None:
        raise InputError(f"{path}: unknown ending; a submission is one of {', '.join(FORMATS)}")

    def source(*_) -> "Iterator[polars.DataFrame]":
        try:
            yield from chunks
        except Exception as error:  # polars wraps it in one of its own
            faults.append(error)
            raise

    with replacing(path) as partial:
        table = register_io_source(source, schema=schema)
        try:
            if kind == "parquet":
                table.sink_parquet(partial)
            else:
                with gzip.open(partial, "wb") if kind == "gzip" else open(partial, "wb") as file:
                    table.sink_csv(file)
        except Exception:
            if faults:
                raise faults[0] from None
            raise
