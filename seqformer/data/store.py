"""A folder of ragged arrays: one flat memory map, offsets, and a JSON line of facts. No pickle anywhere.

``data.bin`` holds all rows after each other, ``offsets.npy`` (rows + 1,) where each starts, ``store.json`` the dtype
and the shape of one frame. Reading a row is a slice of the map; many workers share one page cache.
"""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from seqformer.data.folder import replace_folder
from seqformer.errors import InputError

FORMAT = 1


class StoreWriter:
    """Append arrays (T, ...) of one frame shape; the finished folder is renamed into place when the block ends well.

    ``dtype`` is what is kept on disk: int16 for audio samples, float16 for features. An existing store is replaced
    only by a finished one; after a failure nothing is left. Raises InputError when frame shapes differ, when values do
    not fit into ``dtype``, or when the folder holds something else than a store.
    """

    def __init__(self, folder: str | Path, dtype: str = "float16"):
        self.folder, self.dtype = Path(folder), np.dtype(dtype).newbyteorder("=")
        self.frame_shape: tuple[int, ...] | None = None
        self.offsets = [0]

    def __enter__(self) -> "StoreWriter":
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "store.json").is_file():
            raise InputError(f"{self.folder} is not empty and is no store; a store would replace it")
        with ExitStack() as stack:
            self._partial = stack.enter_context(replace_folder(self.folder))
            self._file = stack.enter_context(open(self._partial / "data.bin", "wb"))
            self._stack = stack.pop_all()
        return self

    def add(self, array: np.ndarray) -> int:
        """Append one array (T, ...) and return its row number."""
        array = np.atleast_1d(array)
        row, shape = len(self.offsets) - 1, array.shape[1:]
        if self.frame_shape is None:
            self.frame_shape = shape
        if shape != self.frame_shape:
            raise InputError(
                f"store {self.folder}: row {row} has frames of shape {shape}, the rows before it {self.frame_shape}"
            )
        self._file.write(self._converted(array, row).tobytes())
        self.offsets.append(self.offsets[-1] + len(array))
        return row

    def _converted(self, array: np.ndarray, row: int) -> np.ndarray:
        """The array in the stored dtype. A silent cast would turn float audio into zeros, large values into others."""
        if array.dtype == self.dtype:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            kept = array.astype(self.dtype)
        exact = self.dtype.kind in "iub"
        if not np.array_equal(kept, array) if exact else np.isinf(kept).sum() != np.isinf(array).sum():
            raise InputError(f"store {self.folder}: row {row} ({array.dtype}) has values that {self.dtype} cannot hold")
        return kept

    def __exit__(self, failure, *rest) -> None:
        if failure is None:
            with self._stack:
                self._file.close()
                np.save(self._partial / "offsets.npy", np.asarray(self.offsets, dtype=np.int64))
                facts = {"format": FORMAT, "dtype": self.dtype.name, "frame_shape": list(self.frame_shape or ())}
                (self._partial / "store.json").write_text(json.dumps(facts) + "\n")
        else:
            self._stack.__exit__(failure, *rest)


class Store:
    """Read rows of a folder made by StoreWriter: ``store[row] -> array (T, ...)`` in the stored dtype.

    Raises InputError when the folder is not a store or its files disagree.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            facts = json.loads((self.folder / "store.json").read_text())
            # Mapped: the offsets of a million rows are one copy for all workers.
            self.offsets = np.load(self.folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
            self.dtype, self.frame_shape = np.dtype(facts["dtype"]), tuple(facts["frame_shape"])
            size = (self.folder / "data.bin").stat().st_size
            self._check(facts["format"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{self.folder} is not a readable store: {error!r}") from error
        wanted = int(self.offsets[-1]) * self.dtype.itemsize * math.prod(self.frame_shape)
        if size != wanted:
            raise InputError(f"store {self.folder}: data.bin has {size} bytes, its offsets speak of {wanted}")
        self._map: np.ndarray | None = None

    def _check(self, form: object) -> None:
        """Raise ValueError unless the facts describe numbers and the offsets only ever grow from 0."""
        if form != FORMAT:
            raise ValueError(f"format {form!r}, expected {FORMAT}")
        if self.dtype.kind not in "iufb":
            raise ValueError(f"dtype {self.dtype} is not one of numbers")
        if not all(type(size) is int and size >= 0 for size in self.frame_shape):
            raise ValueError(f"frame_shape {self.frame_shape}")
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64 or not len(self.offsets):
            raise ValueError("offsets.npy is not a list of whole numbers")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets.npy does not rise from 0")

    def __reduce__(self):
        return Store, (self.folder,)  # a worker maps the files itself: the map would travel as a copy of all data

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Frames of each row, (rows,)."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise InputError(f"store {self.folder}: row {row} of {len(self)}")
        if self._map is None:  # opened on first use, so that each worker maps the file itself
            shape = (int(self.offsets[-1]), *self.frame_shape)
            empty = 0 in shape  # which cannot be mapped
            self._map = (
                np.empty(shape, self.dtype)
                if empty
                else np.memmap(self.folder / "data.bin", self.dtype, "r", shape=shape)
            )
        return np.asarray(self._map[self.offsets[row] : self.offsets[row + 1]])


class Stores(dict):
    """Stores by their folders, each opened when it is first asked for."""

    def __missing__(self, folder: str) -> Store:
        self[folder] = Store(folder)
        return self[folder]
