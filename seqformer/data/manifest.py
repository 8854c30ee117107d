"""The manifest: one polars table that is the only description of a data set.

| column | type | meaning |
|---|---|---|
| ``id`` | text | unique name of the row, in every prediction file and every error message |
| ``path`` | text | an audio file, or a store folder when ``row`` is set; absolute or relative to this table's folder |
| ``row`` | integer >= 0, optional | row of the store at ``path``; empty where ``path`` is an audio file |
| ``offset``, ``bytes`` | integers, optional | where an audio file lies in the file at ``path``, such as a tar archive |
| ``frames`` | integer > 0 | length of the time axis as stored: samples for audio, frames for features |
| ``rate`` | integer > 0, optional | frames per second of the stored array (Hz) |
| ``weight`` | number >= 0, optional | weight of the row in the loss |

Two more columns, ``<input>_path`` and ``<input>_row``, point at a row of another store for a further input. Every other
column is free: targets (``text``, ``label``), inputs, groups (``speaker``), splits, folds.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.store import Store
from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars

REQUIRED = {"id": "text", "path": "text", "frames": "whole numbers"}
OPTIONAL = {
    "row": "whole numbers",
    "offset": "whole numbers",
    "bytes": "whole numbers",
    "rate": "whole numbers",
    "weight": "numbers",
}


def write_manifest(rows: "list[dict] | polars.DataFrame", path: str | Path) -> None:
    """Check a table and write it as parquet, whole or not at all. Raises InputError as ``check_manifest`` does."""
    import polars

    table = rows if isinstance(rows, polars.DataFrame) else polars.DataFrame(rows, infer_schema_length=None)
    path = Path(path)
    check_manifest(table, path)
    content = io.BytesIO()
    table.write_parquet(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(path: str | Path, where: dict | None = None) -> "polars.DataFrame":
    """Read and check a manifest; ``path`` becomes absolute; ``where`` keeps rows by {column: value or list of values}.

    A text file is one too: each line that is not empty is a row with its ``text``, for dataset ``texts``.
    Raises InputError naming the row id and the file for each kind of fault, or when no row is left.
    """
    import polars

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no manifest at {path}; make one with the competition's prepare command")
    if path.suffix == ".txt":
        return select_rows(_lines(path), where or {}, path)
    try:
        table = polars.read_parquet(path)
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise InputError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from error
    check_manifest(table, path)
    folder = path.parent.resolve()
    table = table.with_columns(
        _absolute(table[name], folder)
        for name in table.columns
        if name == "path" or (name.endswith("_path") and f"{name.removesuffix('path')}row" in table.columns)
    )
    return select_rows(table, where or {}, path)


def _absolute(places: "polars.Series", folder: Path) -> "polars.Series":
    """Paths as seen from a folder, each distinct one looked at once: a store of a million rows is one."""
    distinct = places.drop_nulls().unique()
    return places.replace(distinct, [str(folder / place) for place in distinct])


def _lines(path: Path) -> "polars.DataFrame":
    """The rows of a text file, frames being characters."""
    import polars

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no text file: {error}") from error
    rows = [{"id": f"{path.name}:{number}", "path": str(path.resolve()), "frames": len(text), "text": text}
            for number, line in enumerate(lines, start=1) if (text := " ".join(line.split()))]  # fmt: skip
    if not rows:
        raise InputError(f"{path}: there is no text in it")
    return polars.DataFrame(rows)


def select_rows(table: "polars.DataFrame", where: dict, path: str | Path) -> "polars.DataFrame":
    """Rows whose columns hold one of the given values. Raises InputError on an unknown column or value."""
    keep = np.ones(table.height, dtype=bool)
    for column, value in where.items():
        if column not in table.columns:
            raise InputError(f"{path} has no column {column!r}; {nearest(column, table.columns)}")
        wanted = [plain_text(item) for item in (value if isinstance(value, list | tuple) else [value])]
        names = as_text(table[column])
        present = set(names.drop_nulls().to_list())
        for item in wanted:
            if item not in present:
                raise InputError(f"{path}: no row has {column} = {item!r}; {nearest(item, present)}")
        keep &= names.is_in(wanted).fill_null(False).to_numpy()
    if not keep.any():
        raise InputError(f"{path}: no row has all of {where}")
    return table.filter(keep)


def as_text(column: "polars.Series") -> "polars.Series":
    """The values of a column as a config writes them. Raises InputError on lists and other values that have no name."""
    import polars

    if column.dtype.is_nested() or column.dtype in (polars.Object, polars.Binary):
        raise InputError(f"column {column.name!r} holds {column.dtype}; expected text, numbers or true/false")
    return column.cast(polars.String)


def plain_text(value: Any) -> str:
    """One value as ``as_text`` has it in a column."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_manifest(table: "polars.DataFrame", path: str | Path) -> None:
    """Check schema, ids, lengths and files of a manifest that lies at ``path``. Raises InputError on the first fault.

    Each message is one line that names the manifest and, for faults of rows, their ids and files.
    """
    import polars

    col = polars.col
    _check_columns(table, path)
    twice = table.filter(table["id"].is_duplicated())
    if twice.height:
        raise InputError(f"{path}: duplicate id {first_few(_named(twice.unique('id', maintain_order=True)))}")
    tests = {"frames": (col("frames") <= 0, "positive"), "rate": (col("rate") <= 0, "positive")}
    tests["row"] = (col("row") < 0, "0 or more, or empty for an audio file")
    tests["offset"] = (col("offset") < 0, "0 or more, or empty where path is no archive")
    tests["bytes"] = (col("bytes") <= 0, "positive, or empty where path is no archive")
    tests["weight"] = ((col("weight") < 0) | ~col("weight").cast(float).is_finite(), "a number, 0 or more")
    for column, (fault, wanted) in tests.items():
        bad = table.filter(fault) if column in table.columns else table.head(0)
        if bad.height:
            found = [f"{name} has {value}" for name, value in zip(_named(bad), bad[column], strict=True)]
            raise InputError(f"{path}: {column} must be {wanted}, but {first_few(found)}")
    _check_files(table, Path(path))


def _check_columns(table: "polars.DataFrame", path: str | Path) -> None:
    """Raise InputError when a column is missing, has another type or is empty in a row that needs it."""
    import polars

    whole, number = polars.datatypes.group.INTEGER_DTYPES, polars.datatypes.group.NUMERIC_DTYPES
    allowed = {"text": {polars.String}, "whole numbers": whole, "numbers": number}
    for column in REQUIRED:
        if column not in table.columns:
            found = ", ".join(table.columns) or "no columns"
            raise InputError(f"{path}: column {column!r} is missing; found {found}")
    if not table.height:
        raise InputError(f"{path}: the table has no rows")
    for column, kind in (REQUIRED | OPTIONAL).items():
        if column not in table.columns:
            continue
        values = table[column]
        if values.dtype not in {*allowed[kind], polars.Null}:
            raise InputError(f"{path}: column {column!r} holds {values.dtype}; expected {kind}")
        empty = values.is_null() | (values == "" if values.dtype == polars.String else False)
        if empty.any() and column not in ("row", "offset", "bytes"):
            named = _named(table.filter(empty)) if column not in ("id", "path") else empty.arg_true().to_list()
            raise InputError(f"{path}: column {column!r} is empty in row {first_few(named)}")


def _named(rows: "polars.DataFrame") -> list[str]:
    """``id (path)`` of some rows."""
    return [f"{row_id} ({path})" for row_id, path in rows.select("id", "path").iter_rows()]


def _check_files(table: "polars.DataFrame", path: Path) -> None:
    """Raise InputError unless each path is there and is what its row says: a store if ``row`` is set, else a file."""
    import polars

    folder = path.parent.resolve()
    has_row = polars.col("row").is_not_null() if "row" in table.columns else polars.lit(False)
    table = table.with_columns(_stored=has_row)
    # Each distinct path is looked at once: a store of a million rows is one folder.
    pairs = table.select("path", "_stored").unique(maintain_order=True)
    faults = {place: fault for place, stored in pairs.iter_rows() if (fault := _file_fault(folder / place, stored))}
    if faults:
        rows = table.filter(polars.col("path").is_in(list(faults)))
        named = [f"{name} {faults[place]}" for name, place in zip(_named(rows), rows["path"], strict=True)]
        raise InputError(f"{path}: {len(faults)} files of {rows.height} rows cannot be read: {first_few(named)}")
    for rows in table.filter("_stored").partition_by("path", maintain_order=True):
        _check_store(rows, Store(folder / rows["path"][0]), path)
    if "offset" in table.columns or "bytes" in table.columns:
        _check_spans(table, folder, path)


def _check_spans(table: "polars.DataFrame", folder: Path, path: Path) -> None:
    """Raise InputError unless each offset comes with bytes, in an audio row, and ends within its file."""
    from polars import col

    if not {"offset", "bytes"} <= set(table.columns):
        raise InputError(f"{path}: columns 'offset' and 'bytes' go together; one of them is missing")
    half = (col("offset").is_null() != col("bytes").is_null()) | (col("offset").is_not_null() & col("_stored"))
    if (bad := table.filter(half)).height:
        raise InputError(f"{path}: offset and bytes go together, and not with row: {first_few(_named(bad))}")
    ends = table.group_by("path", maintain_order=True).agg(end=(col("offset") + col("bytes")).max()).drop_nulls("end")
    for place, end in ends.iter_rows():
        if end > (size := (folder / place).stat().st_size):
            beyond = table.filter((col("path") == place) & (col("offset") + col("bytes") > size))
            raise InputError(f"{path}: {place} has {size} bytes, but {first_few(_named(beyond))} would end beyond them")


def _file_fault(place: Path, stored: bool) -> str:
    if not place.exists():
        return "is missing"
    if place.is_dir() != stored:
        return "is no store folder, though row is set" if stored else "is a folder, though row is empty"
    return ""


def _check_store(rows: "polars.DataFrame", store: Store, path: Path) -> None:
    """Raise InputError unless the store has each of the rows, at the length that the manifest says."""
    numbers, lengths = rows["row"].to_numpy(), store.lengths()
    inside = numbers < len(store)
    found = np.where(inside, lengths[np.minimum(numbers, len(store) - 1)] if len(store) else -1, -1)
    bad = rows.with_columns(_found=found).filter(found != rows["frames"].to_numpy())
    if bad.height:
        told = [
            f"{name} has {frames} frames, the store {'no row ' + str(row) if there < 0 else there}"
            for name, frames, row, there in zip(_named(bad), bad["frames"], bad["row"], bad["_found"], strict=True)
        ]
        raise InputError(f"{path}: {bad.height} rows differ from their store: {first_few(told)}")


def manifest_hash(path: str | Path, *others: str | Path) -> str:
    """SHA-256 of a run's manifest, and of its others where it has some: a run remembers what it was trained on."""
    hashes = [hashlib.sha256(Path(place).read_bytes()).hexdigest() for place in (path, *others)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if others else hashes[0]
