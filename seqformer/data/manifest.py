"""The manifest: one polars table that is the only description of a data set.

| column | type | meaning |
|---|---|---|
| ``id`` | text | unique name of the row, in every prediction file and every error message |
| ``path`` | text | an audio file, or a store folder when ``row`` is set; relative to the manifest's own folder, or absolute |
| ``row`` | integer, optional | row of the store at ``path`` |
| ``frames`` | integer > 0 | length of the time axis as stored: samples for audio, frames for features |
| ``rate`` | integer, optional | frames per second of the stored array (Hz) |
| ``weight`` | number, optional | weight of the row in the loss |

Every other column is free: targets (``text``, ``label``), groups (``speaker``), splits, folds.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars


def write_manifest(rows: "list[dict] | polars.DataFrame", path: str | Path) -> None:
    """Check a table and write it as parquet, to a temporary name first. Raises InputError as ``check_manifest`` does."""
    import polars

    table = rows if isinstance(rows, polars.DataFrame) else polars.DataFrame(rows, infer_schema_length=None)
    path = Path(path)
    check_manifest(table, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    table.write_parquet(partial)
    os.replace(partial, path)


def read_manifest(path: str | Path, where: dict | None = None) -> "polars.DataFrame":
    """Read and check a manifest; ``path`` becomes absolute; ``where`` keeps rows by {column: value or list of values}.

    Raises InputError naming the row id and the file for each kind of fault, or when no row is left.
    """
    import polars

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no manifest at {path}; make one with the competition's prepare command")
    try:
        table = polars.read_parquet(path)
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise InputError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
    check_manifest(table, path)
    folder = path.parent.resolve()
    table = table.with_columns(polars.col("path").map_elements(lambda p: str(folder / p), return_dtype=polars.String))
    return select_rows(table, where or {}, path)


def select_rows(table: "polars.DataFrame", where: dict, path: str | Path) -> "polars.DataFrame":
    """Rows whose columns hold one of the given values. Raises InputError on an unknown column or value."""
    import polars

    for column, value in where.items():
        if column not in table.columns:
            raise InputError(f"{path} has no column {column!r}; {nearest(column, table.columns)}")
        wanted = [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
        present = set(table[column].cast(polars.String).unique().to_list())
        for item in wanted:
            if item not in present:
                raise InputError(f"{path}: no row has {column} = {item!r}; {nearest(item, map(str, present))}")
        table = table.filter(polars.col(column).cast(polars.String).is_in(wanted))
    return table


def check_manifest(table: "polars.DataFrame", path: str | Path) -> None:
    """Check schema, ids, lengths and files of a manifest that lies at ``path``. Raises InputError on the first fault."""
    import polars

    types = {"id": [polars.String], "path": [polars.String], "frames": polars.datatypes.group.INTEGER_DTYPES}
    optional = {"row": polars.datatypes.group.INTEGER_DTYPES, "rate": polars.datatypes.group.INTEGER_DTYPES}
    optional["weight"] = polars.datatypes.group.NUMERIC_DTYPES
    for column, allowed in (types | optional).items():
        if column not in table.columns:
            if column in types:
                raise InputError(
                    f"{path}: column {column!r} is missing; found {', '.join(table.columns) or 'no columns'}"
                )
        elif table.height and table[column].dtype not in allowed:
            raise InputError(f"{path}: column {column!r} holds {table[column].dtype}; expected {_type_name(column)}")
    if not table.height:
        raise InputError(f"{path}: the table has no rows")
    for column in types:
        if table[column].null_count():
            rows = table[column].is_null().arg_true().to_list()
            raise InputError(f"{path}: column {column!r} is empty in row {first_few(rows)}")
    twice = table.filter(table["id"].is_duplicated())["id"].unique(maintain_order=True).to_list()
    if twice:
        raise InputError(f"{path}: duplicate id {first_few(twice)}")
    short = table.filter(polars.col("frames") <= 0)
    if short.height:
        found = [f"{row['id']} has {row['frames']} ({row['path']})" for row in short.head(4).to_dicts()]
        raise InputError(f"{path}: frames must be positive, but {first_few(found)}")
    _check_files(table, Path(path))


def _check_files(table: "polars.DataFrame", path: Path) -> None:
    # Each distinct path is looked at once: a store of a million rows is one folder.
    folder = path.parent.resolve()
    missing = [p for p in table["path"].unique(maintain_order=True).to_list() if not (folder / p).exists()]
    if missing:
        import polars

        ids = table.filter(polars.col("path").is_in(missing)).head(4)
        found = [f"{row['id']} ({row['path']})" for row in ids.to_dicts()]
        raise InputError(f"{path}: {len(missing)} files are missing: {first_few(found)}")


def _type_name(column: str) -> str:
    return {"id": "text", "path": "text", "weight": "numbers"}.get(column, "whole numbers")


def manifest_hash(path: str | Path) -> str:
    """SHA-256 of the manifest file: a run remembers which table it was trained on."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
