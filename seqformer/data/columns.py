"""Manifest columns as arrays: lists and texts after each other in one, so that workers share pages, not Python objects.

A worker that looks at an object counts its reference, and so gets a copy of its page: with an object for each row, the
memory of workers grows with every row they read.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.store import Stores
from seqformer.errors import InputError

if TYPE_CHECKING:
    import polars


class NumberColumn:
    """``column[index]`` is the value of a row: a number -> (), a list -> (n,), a list of lists of k -> (n, k).

    An empty number is NaN. ``axes`` is "T" for lists, for ``polars.Array`` (as many values in every row: a vector of
    the whole item) " ", and "" for numbers. Raises InputError when a column holds anything else.
    """

    def __init__(self, column: "polars.Series"):
        import polars

        self.name, dtype = column.name, column.dtype
        self.axes = "T" if isinstance(dtype, polars.List) else " " if isinstance(dtype, polars.Array) else ""
        self.offsets = None
        if self.axes == "T":
            if column.null_count():
                raise InputError(f"column {self.name!r} is empty in {column.null_count()} rows")
            self.offsets = np.concatenate([[0], np.cumsum(column.list.len().to_numpy())]).astype(np.int64)
            column = column.filter(column.list.len() > 0).explode()
            dtype = column.dtype
        if isinstance(dtype, polars.List):  # lists of one width
            widths = column.list.len().unique().drop_nulls().to_list()
            if len(widths) > 1 or column.null_count():
                raise InputError(f"column {self.name!r}: expected as many values in every frame, found {widths[:3]}")
            column = column.cast(polars.Array(dtype.inner, widths[0] if widths else 1))
        inner = dtype.inner if isinstance(dtype, polars.List | polars.Array) else dtype
        if not (inner.is_numeric() or inner == polars.Boolean):
            raise InputError(f"column {self.name!r} holds {dtype}; an input is numbers, or lists of them")
        whole = inner.is_integer() and not column.null_count()
        self.values = column.to_numpy().astype(np.int32 if whole else np.float32)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.offsets is None:
            return np.asarray(self.values[index])
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class StoreColumn:
    """``column[index]`` is a row's array (n, ...) in one of some stores."""

    axes = "T"

    def __init__(self, paths: "polars.Series", rows: "polars.Series"):
        self.paths, self.rows = ValueColumn(paths), rows.cast(int).to_numpy()
        self._stores = Stores()

    def __getitem__(self, index: int) -> np.ndarray:
        return self._stores[self.paths[index]][int(self.rows[index])]


class ValueColumn(Sequence):
    """``column[index]`` is ``series.to_list()[index]``: a text, number, list, dict or None, made when asked for."""

    def __init__(self, column: "polars.Series"):
        import polars

        self.size, dtype = len(column), column.dtype
        self.empty = column.is_null().to_numpy() if column.null_count() else None
        self.offsets = None  # where each list or text begins in ``values``
        if isinstance(dtype, polars.Struct):
            self.values = {field.name: ValueColumn(column.struct.field(field.name)) for field in dtype.fields}
        elif isinstance(dtype, polars.List | polars.Array):
            column = column.cast(polars.List(dtype.inner))
            counts = column.list.len().fill_null(0)
            self.values = ValueColumn(column.filter(counts > 0).explode())
            self.offsets = _offsets(counts)
        elif dtype in (polars.String, polars.Categorical, polars.Enum):
            column = column.cast(polars.String).fill_null("")
            self.values = column.str.join("")[0].encode()
            self.offsets = _offsets(column.str.len_bytes())
        else:
            column = column.cast(float) if isinstance(dtype, polars.Decimal | polars.Null) else column
            self.values = column.fill_null(False if dtype == polars.Boolean else 0).to_numpy()

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator:
        return iter(self.read(0, self.size))

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.values, bytes) and self.empty is None:  # what is read most: a path, a text
            return self.values[self.offsets.item(index) : self.offsets.item(index + 1)].decode()
        return self.read(index, index + 1)[0]

    def read(self, start: int, stop: int) -> list:
        """The values of some rows after each other."""
        if isinstance(self.values, dict):
            fields = [column.read(start, stop) for column in self.values.values()]
            found = [dict(zip(self.values, row, strict=True)) for row in zip(*fields, strict=True)]
        elif self.offsets is None:
            found = self.values[start:stop].tolist()
        elif isinstance(self.values, bytes):
            found = [self.values[low:high].decode() for low, high in pairwise(self.offsets[start : stop + 1])]
        else:
            edges = self.offsets[start : stop + 1]
            inner = self.values.read(edges[0], edges[-1]) if len(edges) > 1 else []
            found = [inner[low:high] for low, high in pairwise(edges - edges[0])]
        if self.empty is None:
            return found
        return [None if empty else value for empty, value in zip(self.empty[start:stop], found, strict=True)]


def _offsets(counts: "polars.Series") -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts.to_numpy(), dtype=np.int64)])
