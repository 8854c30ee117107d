"""A folder of ragged arrays: one flat memory map, offsets, and a JSON line of facts. No pickle anywhere.

``data.bin`` holds all rows after each other, ``offsets.npy`` (rows + 1,) where each starts, ``store.json`` the dtype
and the shape of one frame. Reading a row is a slice of the map; many workers share one page cache.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from seqformer.errors import InputError

FORMAT = 1


class StoreWriter:
    """Append arrays (T, ...) of one frame shape; the finished folder is renamed into place when the block ends well.

    ``dtype`` is what is kept on disk: int16 for audio samples, float16 for features. An existing store is replaced
    only by a finished one. Raises InputError when frame shapes differ.
    """

    def __init__(self, folder: str | Path, dtype: str = "float16"):
        self.folder, self.dtype = Path(folder), np.dtype(dtype)
        self.partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        self.frame_shape: tuple[int, ...] | None = None
        self.offsets = [0]

    def __enter__(self) -> "StoreWriter":
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self._file = open(self.partial / "data.bin", "wb")
        return self

    def add(self, array: np.ndarray) -> int:
        """Append one array (T, ...) and return its row number."""
        if self.frame_shape is None:
            self.frame_shape = tuple(array.shape[1:])
        if tuple(array.shape[1:]) != self.frame_shape:
            raise InputError(
                f"store {self.folder}: row {len(self.offsets) - 1} has frames of shape {array.shape[1:]}, "
                f"the rows before it {self.frame_shape}"
            )
        self._file.write(np.ascontiguousarray(array, dtype=self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(array))
        return len(self.offsets) - 2

    def __exit__(self, failure, *_) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if failure is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        np.save(self.partial / "offsets.npy", np.asarray(self.offsets, dtype=np.int64))
        facts = {"format": FORMAT, "dtype": self.dtype.name, "frame_shape": list(self.frame_shape or ())}
        (self.partial / "store.json").write_text(json.dumps(facts) + "\n")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.rename(self.partial, self.folder)


class Store:
    """Read rows of a folder made by StoreWriter: ``store[row] -> array (T, ...)`` in the stored dtype.

    Raises InputError when the folder is not a store or its files disagree.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            facts = json.loads((self.folder / "store.json").read_text())
            self.offsets = np.load(self.folder / "offsets.npy", allow_pickle=False)
            self.dtype, self.frame_shape = np.dtype(facts["dtype"]), tuple(facts["frame_shape"])
            size = (self.folder / "data.bin").stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder} is not a readable store: {error}") from error
        frame_bytes = self.dtype.itemsize * int(np.prod(self.frame_shape))
        if size != int(self.offsets[-1]) * frame_bytes:
            raise InputError(
                f"store {self.folder}: data.bin has {size} bytes, its offsets speak of {self.offsets[-1] * frame_bytes}"
            )
        self._map: np.ndarray | None = None

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
            self._map = (
                np.memmap(self.folder / "data.bin", self.dtype, "r", shape=shape) if shape[0] else np.empty(shape)
            )
        return np.asarray(self._map[self.offsets[row] : self.offsets[row + 1]])
