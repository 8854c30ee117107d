"""Rows of a manifest as examples. ``dataset[epoch, index]`` is a pure function of (seed, epoch, index).

The epoch is part of the key, so that workers need no message about it and every draw is the same for any number
of them. Epoch ``VALID`` asks for the row as it is, without augmentation.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from seqformer.batch import Example
from seqformer.data.audio import read_audio, resample
from seqformer.data.store import Store
from seqformer.data.targets import Targets
from seqformer.errors import InputError
from seqformer.registry import register

if TYPE_CHECKING:
    import polars

VALID = -1


class RowReader:
    """Read the arrays of manifest rows: ``reader[index] -> (T, ...)``.

    Audio, from a file or an int16 store, becomes float32 samples at ``rate`` Hz; other stores are read as they are.
    """

    def __init__(self, table: "polars.DataFrame", rate: int | None = None):
        # numpy columns, not Python objects: workers share their pages instead of copying them at every count.
        self.ids, self.paths = table["id"].to_numpy().astype(str), table["path"].to_numpy().astype(str)
        self.rows = table["row"].to_numpy() if "row" in table.columns else None
        self.rates = table["rate"].to_numpy() if "rate" in table.columns else None
        self.stored_frames, self.rate = table["frames"].to_numpy(), rate
        self._stores: dict[str, Store] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self) -> np.ndarray:
        """Frames (rows,) of each row as it will be read."""
        if self.rate is None or self.rates is None:
            return self.stored_frames
        return np.ceil(self.stored_frames * (self.rate / self.rates)).astype(np.int64)

    def __getitem__(self, index: int) -> np.ndarray:
        path = str(self.paths[index])
        if self.rows is None:
            return self._samples(path, index)
        if path not in self._stores:
            self._stores[path] = Store(path)
        array = self._stores[path][int(self.rows[index])]
        if len(array) != self.stored_frames[index]:
            raise InputError(
                f"row {self.ids[index]}: {path} holds {len(array)} frames, the manifest says {self.stored_frames[index]}"
            )
        if array.dtype == np.int16 and array.ndim == 1:
            samples = array.astype(np.float32) / 32768
            return samples if self.rate is None else resample(samples, int(self.rates[index]), self.rate)
        return array

    def _samples(self, path: str, index: int) -> np.ndarray:
        try:
            return read_audio(path, self.rate)[0]
        except InputError as error:
            raise InputError(f"row {self.ids[index]}: {error}") from error


@register("dataset", "rows")
class SequenceDataset:
    """Each row of the manifest as one example with input ``x``.

    What a registered dataset is: ``ids``, ``rate``, ``columns`` {target: value per example}, ``len``, ``frames(epoch)`` and
    ``[epoch, index]``; built with these arguments and its own keywords from the config's ``dataset`` section.
    ``training`` tells one that makes its examples up which of its two sets is wanted.
    """

    def __init__(
        self,
        table: "polars.DataFrame",
        targets: Targets | None = None,
        rate: int | None = None,
        seed: int = 0,
        augment: Callable[[np.ndarray, int], np.ndarray] | None = None,
        training: bool = False,
    ):
        self.reader, self.targets, self.seed, self.augment = RowReader(table, rate), targets, seed, augment
        self.columns = {name: table[name].to_list() for name in targets.encoders} if targets else {}
        self.weight = table["weight"].to_numpy() if "weight" in table.columns else np.ones(table.height)

    @property
    def rate(self) -> int | None:
        """Frames per second of the examples, where the manifest knows it."""
        return self.reader.rate or (int(self.reader.rates[0]) if self.reader.rates is not None else None)

    @property
    def ids(self) -> np.ndarray:
        return self.reader.ids

    def __len__(self) -> int:
        return len(self.reader)

    def frames(self, epoch: int) -> np.ndarray:
        """Expected frames (rows,) of each example of an epoch, for the batch planner."""
        return self.reader.frames()

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        x = self.reader[index]
        if self.augment is not None and epoch != VALID:
            x = self.augment(x, draw_seed(self.seed, epoch, index))
        targets, axes = (
            self.targets.encode({k: v[index] for k, v in self.columns.items()}) if self.targets else ({}, {})
        )
        return Example(str(self.ids[index]), {"x": x}, len(x), targets, float(self.weight[index]), axes)


def draw_seed(*key: int) -> int:
    """A 32-bit seed that is a pure function of its key, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence([part + 1 for part in key]).generate_state(1)[0])
