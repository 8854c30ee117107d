"""Cases of the UEA / UCR time series archive: its ``.ts`` files, or the same cases as a parquet table.

A case is a dict: id, label, x (T, channels) float32 with NaN for a missing value. A ``.ts`` file is a header of lines
``@key value`` up to ``@data``, then a case a line: dimensions separated by ``:``, values by ``,``, ``?`` for a missing
one, the class label last. Readers raise InputError naming file, line or row, and dimension.
"""

from pathlib import Path

import numpy as np

import seqformer

KEYS = ("problemname", "timestamps", "missing", "univariate", "dimension", "dimensions", "equallength", "serieslength")
KEYS += ("classlabel", "targetlabel", "data")
COLUMNS = ("id", "label", "n_frames", "n_channels", "x")


def read_ts(path: Path) -> list[dict]:
    """Cases of one ``.ts`` file, in its order."""
    header, cases = {}, []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(map(str.strip, file), 1):
            where = f"{path}, line {line}"
            if not text or text.startswith("#"):
                continue
            if "data" not in header:
                key, value = read_key(text, where)
                header[key] = value
                if key == "data":
                    classes, dimensions = read_header(header, path)
                continue
            case = read_case(text, classes, dimensions, where)
            dimensions = case["x"].shape[1]  # of the first case, where the header does not tell
            cases.append({"id": f"{path.stem}-{len(cases)}", **case})
    if not cases:
        raise seqformer.InputError(f"{path}: no case after @data" if "data" in header else f"{path}: no line @data")
    check_lengths(cases, header, path)
    return cases


def read_key(text: str, where: str) -> tuple[str, str]:
    """``@key value`` of a header line."""
    key, _, value = text.removeprefix("@").partition(" ")
    if not text.startswith("@") or key.lower() not in KEYS:
        raise seqformer.InputError(f"{where}: found {text[:40]!r}; expected a header line such as @dimensions 24")
    return key.lower(), value.strip()


def read_header(header: dict[str, str], path: Path) -> tuple[set[str], int | None]:
    """The class names, and the number of dimensions where it is told."""
    stamps = header.get("timestamps", "false").lower()
    if stamps != "false":
        raise seqformer.InputError(f"{path}: @timeStamps {stamps}; only series without time stamps are read")
    told, *classes = header.get("classlabel", "").split() or ["missing"]
    if told.lower() != "true" or not classes:
        raise seqformer.InputError(f"{path}: @classLabel {told}; expected true and the names of the classes")
    if header.get("univariate", "").lower() == "true":
        return set(classes), 1
    count = header.get("dimensions", header.get("dimension"))
    if count is not None and not count.isdigit():
        raise seqformer.InputError(f"{path}: @dimensions {count}; expected a whole number")
    return set(classes), None if count is None else int(count)


def read_case(text: str, classes: set[str], dimensions: int | None, where: str) -> dict:
    """Label and values of one line."""
    *series, label = text.split(":")
    label = label.strip()
    if label not in classes:
        raise seqformer.InputError(f"{where}: class {label[:40]!r} after the last ':' is not one of the header's")
    if not series or dimensions not in (None, len(series)):
        raise seqformer.InputError(f"{where}: {len(series)} dimensions; expected {dimensions or 'at least one'}")
    columns = [read_values(part, f"{where}, dimension {number}") for number, part in enumerate(series, 1)]
    for number, column in enumerate(columns, 1):
        if len(column) != len(columns[0]):
            raise seqformer.InputError(
                f"{where}, dimension {number}: {len(column)} values, the first dimension has {len(columns[0])}"
            )
    return {"label": label, "x": np.stack(columns, axis=1)}


def read_values(text: str, where: str) -> np.ndarray:
    """``0.5,?,-1e-3`` -> (T,) float32, NaN for ``?``."""
    values = []
    for number, word in enumerate(map(str.strip, text.split(",")), 1):
        try:
            # float() also takes nan, inf, and underscores in numbers, which no archive file means
            value = np.nan if word == "?" else float(word if word.lower().strip("+-")[:1] not in ("n", "i") else "")
        except ValueError:
            raise seqformer.InputError(f"{where}: value {number} is {word[:20]!r}; expected a number or ?") from None
        values.append(value)
    return np.asarray(values, dtype=np.float32)


def check_lengths(cases: list[dict], header: dict[str, str], path: Path) -> None:
    """Raise InputError where the header promises one length and a case has another."""
    if header.get("equallength", "").lower() != "true":
        return
    wanted = int(header["serieslength"]) if header.get("serieslength", "").isdigit() else len(cases[0]["x"])
    for case in cases:
        if len(case["x"]) != wanted:
            raise seqformer.InputError(
                f"{path}: case {case['id']} has {len(case['x'])} frames, the header says {wanted}"
            )


def read_table(path: Path) -> list[dict]:
    """Cases of a parquet table: id, label, n_frames, n_channels, and x, the values frame after frame."""
    import polars

    try:
        table = polars.read_parquet(path)
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise seqformer.InputError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from error
    for column in COLUMNS:
        if column not in table.columns:
            raise seqformer.InputError(f"{path}: column {column!r} is missing; found {', '.join(table.columns)}")
        if table[column].null_count():
            row = table[column].is_null().arg_true()[0]
            raise seqformer.InputError(f"{path}: column {column!r} is empty in row {row}")
    if not isinstance(table["x"].dtype, polars.List) or not table["x"].dtype.inner.is_numeric():
        raise seqformer.InputError(f"{path}: column 'x' holds {table['x'].dtype}; expected a list of numbers")
    cases, channels = [], table["n_channels"][0]
    for number, row in enumerate(table.iter_rows(named=True)):
        where, x = f"{path}, row {number} ({row['id']})", np.asarray(row["x"], dtype=np.float32)
        if row["n_channels"] != channels:
            raise seqformer.InputError(f"{where}: n_channels is {row['n_channels']}, the first row has {channels}")
        if len(x) != row["n_frames"] * channels or not len(x):
            raise seqformer.InputError(f"{where}: x has {len(x)} values; expected {row['n_frames']} x {channels}")
        cases.append({"id": str(row["id"]), "label": str(row["label"]), "x": x.reshape(-1, channels)})
    return cases
