"""Raw tables of a competition (csv, tsv, parquet, json lines), read strictly: a fault names file, column and row."""

import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqformer.errors import InputError, nearest

if TYPE_CHECKING:
    import polars

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read_table(path: str | Path, columns: dict[str, Any]) -> "polars.DataFrame":
    """The named columns of a table, in that order, as the given types; the file's other columns are not read.

    A type is ``str``, ``int``, ``float``, ``bool`` or, in parquet and json lines, a list such as ``list[float]`` and
    ``list[list[int]]``. ``float | None`` may be empty; every other type has a value in each row, and NaN counts as
    empty. Formats by ending: ``.csv`` and ``.tsv`` (also ``.gz``), ``.parquet``, ``.json`` and ``.jsonl`` (one object
    a line). Raises InputError naming the file, the column and the first bad row, counted from 1 below the header.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no table at {path}")
    kinds = {name: _kind(wanted) for name, wanted in columns.items()}
    table = _read(path, {name: kind for name, (kind, _) in kinds.items()})
    if not table.height:
        raise InputError(f"{path}: the table has no rows")
    return table.select(_column(table[name], kind, optional, path) for name, (kind, optional) in kinds.items())


def _kind(wanted: Any) -> tuple[Any, bool]:
    """A type of ``read_table`` -> (type, may it be empty). Raises ValueError on any other."""
    options = [option for option in typing.get_args(wanted) if option is not types.NoneType]
    optional = isinstance(wanted, types.UnionType) and len(options) == 1
    kind = inner = options[0] if optional else wanted
    while typing.get_origin(inner) is list:
        (inner,) = typing.get_args(inner)
    if inner not in WORDS:
        raise ValueError(f"{wanted!r} is no type of a column; expected str, int, float, bool, lists of them, or | None")
    return kind, optional


def _dtype(kind: Any) -> Any:
    import polars

    if typing.get_origin(kind) is list:
        return polars.List(_dtype(typing.get_args(kind)[0]))
    return {str: polars.String, int: polars.Int64, float: polars.Float64, bool: polars.Boolean}[kind]


def _read(path: Path, kinds: dict[str, Any]) -> "polars.DataFrame":
    """The columns as the file holds them or, of a csv, as they should be where that can be had without a fault."""
    import polars

    ending = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    try:
        if ending in (".csv", ".csv.gz", ".tsv", ".tsv.gz"):
            return _read_csv(path, kinds, "\t" if "tsv" in ending else ",")
        if ending == ".parquet":
            _check_names(path, list(polars.read_parquet_schema(path)), kinds)
            return polars.read_parquet(path, columns=list(kinds))
        if ending in (".json", ".jsonl", ".ndjson"):
            table = polars.read_ndjson(path, infer_schema_length=None)
            _check_names(path, table.columns, kinds)
            return table.select(list(kinds))
    except InputError:
        raise
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
    raise InputError(f"{path}: unknown ending {ending!r}; expected .csv, .tsv, .parquet, .json or .jsonl")


def _read_csv(path: Path, kinds: dict[str, Any], separator: str) -> "polars.DataFrame":
    import polars

    header = polars.read_csv(path, separator=separator, n_rows=0, infer_schema=False).columns
    _check_names(path, header, kinds)
    for name, kind in kinds.items():
        if typing.get_origin(kind) is list:
            raise InputError(f"{path}: column {name!r} cannot hold lists, for csv has none")
    wanted = {name: _dtype(kind) for name, kind in kinds.items()}
    try:
        return polars.read_csv(path, separator=separator, columns=list(kinds), schema_overrides=wanted)
    except polars.exceptions.ComputeError:  # some value is something else; as text, it can be named
        return polars.read_csv(path, separator=separator, columns=list(kinds), infer_schema=False)


def _check_names(path: Path, found: list[str], wanted: dict[str, Any]) -> None:
    for name in wanted:
        if name not in found:
            raise InputError(f"{path} has no column {name!r}; {nearest(name, found)}")


def _column(values: "polars.Series", kind: Any, optional: bool, path: Path) -> "polars.Series":
    """A column as one type. Raises InputError on the first value that is none of it, or is empty and must not be."""
    import polars

    cast, bad = _cast(values, kind)
    if bad.any():
        rows = bad.arg_true()
        found = values[int(rows[0])]
        found = values.dtype if isinstance(found, polars.Series | dict) else repr(found)
        raise InputError(f"{path}: column {values.name!r} holds {found} in row {_rows(rows)}; expected {_words(kind)}")
    empty = cast.is_null() | (cast.is_nan().fill_null(False) if kind is float else False)
    if empty.any() and not optional:
        raise InputError(f"{path}: column {values.name!r} is empty in row {_rows(empty.arg_true())}")
    return cast


def _cast(values: "polars.Series", kind: Any) -> tuple["polars.Series", "polars.Series"]:
    """A column as a type, and which rows (n,) hold something that it cannot say."""
    import polars

    nested, wanted = values.dtype.is_nested(), _dtype(kind)
    if (nested != wanted.is_nested() or isinstance(values.dtype, polars.Struct)) and values.dtype != polars.Null:
        return values, values.is_not_null()
    if wanted.is_nested() and nested:
        flat = values.to_frame("v").with_row_index("row").explode("v")
        _, bad = _cast(flat["v"], typing.get_args(kind)[0])
        rows = flat["row"].filter(bad).unique()
        at_fault = polars.Series(range(len(values)), dtype=rows.dtype).is_in(rows.implode())
        return values.cast(wanted, strict=False) if not bad.any() else values, at_fault
    if kind is bool and values.dtype == polars.String:
        cast = values.str.to_lowercase().replace_strict({"true": True, "false": False, "1": True, "0": False},
                                                        default=None, return_dtype=polars.Boolean)  # fmt: skip
    else:
        cast = values.cast(wanted, strict=False)
    bad = cast.is_null() & values.is_not_null()
    if values.dtype.is_float() and kind is int:
        bad |= (values != cast.cast(values.dtype)).fill_null(False)
    return cast, bad


def _rows(rows: "polars.Series") -> str:
    more = f" and {len(rows) - 1:,} more rows" if len(rows) > 1 else ""
    return f"{int(rows[0]) + 1}{more}"


def _words(kind: Any) -> str:
    return f"a list of ({_words(typing.get_args(kind)[0])})" if typing.get_origin(kind) is list else WORDS[kind]
