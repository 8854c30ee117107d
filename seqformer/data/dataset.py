"""Rows of a manifest as examples. ``dataset[epoch, index]`` is a pure function of (seed, epoch, index).

The epoch is part of the key, so that workers need no message about it and every draw is the same for any number
of them. Epoch ``VALID`` asks for the row as it is, without augmentation.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from seqformer.augment.mix import Mixer, names_of
from seqformer.augment.waveform import played, stretch_of
from seqformer.batch import Example
from seqformer.data.audio import read_audio, resample
from seqformer.data.columns import NumberColumn, StoreColumn, ValueColumn
from seqformer.data.store import Stores
from seqformer.data.targets import Targets, Units
from seqformer.errors import InputError, nearest
from seqformer.registry import register

if TYPE_CHECKING:
    from fractions import Fraction

    import polars

VALID = -1


class RowReader:
    """Read the arrays of manifest rows: ``reader[index] -> (T, ...)``.

    Audio, from a file, from a part of one (``offset``, ``bytes``) or from an int16 store, becomes float32 samples at
    ``rate`` Hz; other stores are read as they are (so a store of token numbers is not int16). Raises InputError naming
    row and file when one cannot be read or differs from the manifest, and at once when ``rate`` is wanted of a manifest
    without rates.
    """

    def __init__(self, table: "polars.DataFrame", rate: int | None = None):
        self.ids, self.paths = table["id"].to_numpy().astype(str), ValueColumn(table["path"])
        self.rows = _whole(table, "row")  # -1 where the path is an audio file
        self.offsets, self.sizes = _whole(table, "offset"), _whole(table, "bytes")  # -1 where it is one of its own
        self.rates = _whole(table, "rate") if "rate" in table.columns else None
        self.stored_frames, self.rate = _whole(table, "frames"), rate
        if rate is not None and self.rates is None:
            raise InputError(f"audio is wanted at {rate} Hz, but the manifest has no column 'rate'")
        self._stores = Stores()

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self) -> np.ndarray:
        """Frames (rows,) of each row as it will be read."""
        if self.rate is None:
            return self.stored_frames
        return -(-self.stored_frames * self.rate // self.rates)  # ceil, in whole numbers as the resampler counts

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            array, rate = self._read(self.paths[index], index)
        except InputError as error:
            raise InputError(f"row {self.ids[index]}: {error}") from error
        if rate is None or self.rate is None:
            return array
        return resample(array, rate, self.rate)

    def _read(self, path: str, index: int) -> tuple[np.ndarray, int | None]:
        """The stored array, and its rate in Hz where it is audio."""
        rate = None if self.rates is None else int(self.rates[index])
        if self.rows[index] < 0:
            span = (int(self.offsets[index]), int(self.sizes[index])) if self.offsets[index] >= 0 else None
            array, found = read_audio(path, span=span)
            if rate not in (None, found):
                raise InputError(f"{path} has {found} samples a second, the manifest says {rate}")
            rate = found
        else:
            array = self._stores[path][int(self.rows[index])]
        if len(array) != self.stored_frames[index]:
            raise InputError(f"{path} holds {len(array)} frames, the manifest says {self.stored_frames[index]}")
        if array.dtype == np.int16 and array.ndim == 1:
            array = array.astype(np.float32) / 32768
        elif self.rows[index] >= 0:
            rate = None
        return array, rate


def _whole(table: "polars.DataFrame", column: str) -> np.ndarray:
    """A column of whole numbers (rows,), -1 where it is empty or missing."""
    if column not in table.columns:
        return np.full(table.height, -1)
    return table[column].cast(int).fill_null(-1).to_numpy()


@register("dataset", "rows")
class SequenceDataset:
    """Each row of the manifest as one example with input ``x``.

    ``inputs`` names further ones: a column of the manifest (numbers, or lists of them, see NumberColumn), or the rows
    of another store, given by the columns ``<name>_path`` and ``<name>_row``. ``pairs`` are those that hold lists
    (i, j, value), i and j being frames: they become a symmetric matrix (T, T), or (T, T, P) of P values. ``mix`` makes
    training examples of two rows each, see ``seqformer.augment.mix``. ``speed`` plays each row of an epoch by one of
    these factors, as augmentation ``speed`` does; but its draws are known to the batch planner, and so are the lengths.
    ``speed_on: device`` leaves the playing to the frontend, which filters a whole batch on the model's device, after
    all augmentation: the samples stay as they are, ``frames`` are those of afterwards, and input ``x_speed`` (3,) says
    how many samples there are and in ``up / down`` times as long they are to be played.

    What a registered dataset is: ``ids``, ``rate``, ``columns`` {target: value per example}, ``len``,
    ``frames(epoch)`` and ``[epoch, index]``, and ``units`` where it can tell them; built with these arguments and its
    own keywords from the config's ``dataset`` section. ``training`` tells one that makes its examples up which of its
    two sets is wanted.
    """

    def __init__(
        self,
        table: "polars.DataFrame",
        targets: Targets | None = None,
        rate: int | None = None,
        seed: int = 0,
        augment: Callable[[Example, int], Example] | None = None,
        training: bool = False,
        inputs: list[str] = (),
        pairs: list[str] = (),
        mix: list[dict] = (),
        speed: list[float] = (),
        speed_on: Literal["worker", "device"] = "worker",
    ):
        self.reader, self.targets, self.seed, self.augment = RowReader(table, rate), targets, seed, augment
        self.inputs = {name: _input_reader(table, name) for name in (*inputs, *pairs)}
        self.pairs = set(pairs)
        learned = [name for name in targets.encoders if name not in targets.made] if targets else []
        for name in learned:
            if name not in table.columns:
                raise InputError(f"the rows have no column {name!r}; {nearest(name, table.columns)}")
        self.columns = {name: ValueColumn(table[name]) for name in learned}
        self.weight = table["weight"].to_numpy() if "weight" in table.columns else np.ones(table.height)
        self.mixer = self._mixer(table, list(mix)) if mix and training else None
        if speed and (min(speed) <= 0 or self.rate is None):
            raise InputError(f"dataset.speed {list(speed)}: expected factors above 0, of rows with a rate")
        self.stretches = [stretch_of(factor) for factor in speed]
        self.plays_on_device = bool(speed) and speed_on == "device"

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
        frames = self.reader.frames()
        if epoch == VALID or not self.stretches:
            return frames
        drawn = draw_choices(self.seed, epoch, len(self), len(self.stretches))
        up, down = np.array([(one.numerator, one.denominator) for one in self.stretches])[drawn].T
        return -(-frames * up // down)

    @cached_property
    def units(self) -> np.ndarray | None:
        """Units (rows,) of each row's text, the longest of several, for the batch planner; None without a text."""
        encoders = self.targets.encoders if self.targets else {}
        texts = {name: encoder for name, encoder in encoders.items() if isinstance(encoder, Units)}
        counts = [[len(one.encode(text)) for text in self.columns[name]] for name, one in texts.items()]
        return np.max(counts, axis=0) if counts else None

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        if epoch == VALID:
            return self.read(index)
        seed = draw_seed(self.seed, epoch, index)
        read = partial(self.read, epoch=epoch)
        example = self.mixer(read, index, np.random.default_rng([seed, 1])) if self.mixer else read(index)
        example = self.augment(example, seed) if self.augment is not None else example
        return to_be_played(example, self._stretch(epoch, index)) if self.plays_on_device else example

    def read(self, index: int, epoch: int = VALID) -> Example:
        """The row as it is, or at its speed of an epoch."""
        x = self.reader[index]
        if epoch != VALID and self.stretches and not self.plays_on_device:
            x = played(x, self._stretch(epoch, index))
        try:
            targets, axes = self._targets(index)
            inputs = {"x": x} | {name: self._input(name, index, len(x), axes) for name in self.inputs}
        except InputError as error:
            raise InputError(f"row {self.ids[index]}: {error}") from error
        return Example(str(self.ids[index]), inputs, len(x), targets, float(self.weight[index]), axes)

    def _stretch(self, epoch: int, index: int) -> "Fraction":
        return self.stretches[draw_choices(self.seed, epoch, len(self), len(self.stretches))[index]]

    def _targets(self, index: int) -> tuple[dict, dict]:
        if self.targets is None:
            return {}, {}
        return self.targets.encode({name: values[index] for name, values in self.columns.items()})

    def _input(self, name: str, index: int, frames: int, axes: dict[str, str]) -> np.ndarray:
        """One further input of a row; notes its axes."""
        reader = self.inputs[name]
        array = reader[index]
        if name in self.pairs:
            axes[name] = "TT"
            return _matrix(name, array, frames)
        axes[name] = reader.axes
        return array

    def _mixer(self, table: "polars.DataFrame", parts: list[dict]) -> Mixer:
        encoders = self.targets.encoders if self.targets else {}
        for name in names_of(parts):
            if name not in table.columns:
                raise InputError(f"mix: by names no column {name!r}; {nearest(name, table.columns)}")
        classes = {name: encoder.size for name, encoder in encoders.items() if getattr(encoder, "whole", False)}
        columns = {"id": self.ids} | {name: ValueColumn(table[name]) for name in names_of(parts)}
        return Mixer(parts, columns, classes)


def _input_reader(table: "polars.DataFrame", name: str) -> NumberColumn | StoreColumn:
    """Reader of an input beside ``x``: of its store, where the manifest has columns for one, or of its column."""
    place, row = f"{name}_path", f"{name}_row"
    if place in table.columns and row in table.columns:
        return StoreColumn(table[place], table[row])
    if name not in table.columns:
        raise InputError(f"dataset: the manifest has no column {name!r}; {nearest(name, table.columns)}")
    return NumberColumn(table[name])


def _matrix(name: str, pairs: np.ndarray, frames: int) -> np.ndarray:
    """Two frames and P values each, (n, 2 + P) -> (T, T, P), or (T, T) of one value; symmetric, 0 for other pairs.

    Raises InputError on a frame that is not there.
    """
    if pairs.ndim != 2 or pairs.shape[1] < 3:
        raise InputError(f"{name!r} has shape {pairs.shape}; expected (pairs, 3): two frames and a value")
    matrix = np.zeros((frames, frames, pairs.shape[1] - 2), dtype=np.float32)
    if len(pairs):
        first, second = pairs[:, :2].astype(np.int64).T
        low, high = pairs[:, :2].min(), pairs[:, :2].max()
        if low < 0 or high >= frames:
            raise InputError(f"{name!r} pairs frame {int(low if low < 0 else high)} of {frames} frames")
        matrix[first, second] = matrix[second, first] = pairs[:, 2:]
    return matrix[..., 0] if matrix.shape[-1] == 1 else matrix


def to_be_played(example: Example, stretch: "Fraction") -> Example:
    """The example with its samples as they are, and what plays them on the model's device."""
    up, down = stretch.numerator, stretch.denominator
    inputs = {**example.inputs, "x_speed": np.array([example.frames, up, down])}
    axes = {**example.axes, "x": "U", "x_speed": "H"}
    return replace(example, inputs=inputs, frames=-(-example.frames * up // down), axes=axes)


@lru_cache(maxsize=4)
def draw_choices(seed: int, epoch: int, rows: int, count: int) -> np.ndarray:
    """One of ``count`` choices for each of so many rows (rows,), drawn for a whole epoch at once."""
    return np.random.default_rng([seed, epoch, 2]).integers(count, size=rows, dtype=np.uint8)


def draw_seed(*key: int) -> int:
    """A 32-bit seed that is a pure function of its key, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence([part + 1 for part in key]).generate_state(1)[0])
