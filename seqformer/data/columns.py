"""Manifest columns as arrays: lists after each other in one array, so that workers share pages, not Python objects."""

from typing import TYPE_CHECKING

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

    def __init__(self, paths: list[str], rows: list[int]):
        self.paths, self.rows = np.asarray(paths, dtype=str), np.asarray(rows, dtype=np.int64)
        self._stores = Stores()

    def __getitem__(self, index: int) -> np.ndarray:
        return self._stores[str(self.paths[index])][int(self.rows[index])]
