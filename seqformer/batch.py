"""Example and Batch: what one row becomes, and what a model sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqformer.errors import InputError
from seqformer.nn.mask import mask_of

# Fill of padded targets: a class or unit that is not scored, a value that is not scored.
NO_CLASS, NO_VALUE = -1, float("nan")


@dataclass(frozen=True)
class Example:
    """One row, read and augmented.

    ``inputs`` and ``targets`` are named numpy arrays or numbers. ``axes`` says for a field which of its axes are time
    ("T", padded to the longest of the batch) or another ragged axis ("U"); every other axis is fixed. A field without
    an entry has time first if it has any axis at all. "H" is a fixed axis of a few numbers that are read on the host,
    by what chooses how to compute: such a field is not moved to a GPU.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    frames: int
    targets: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    axes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Examples padded to one length: ids (B), inputs and targets (B, ...), mask (B, T), weight (B,).

    ``axes`` are those of an Example, without the axis of items.
    """

    ids: list[str]
    inputs: dict[str, Tensor]
    mask: Tensor
    targets: dict[str, Tensor]
    weight: Tensor
    axes: Mapping[str, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; copies do not block the host when the memory is pinned."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            stay = {name for name in tensors if "H" in self.axes.get(name, "")}
            return {
                name: tensor if name in stay else tensor.to(device, non_blocking=True)
                for name, tensor in tensors.items()
            }

        moved = move({"mask": self.mask, "weight": self.weight})
        return replace(self, inputs=move(self.inputs), targets=move(self.targets), **moved)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader's pinning thread."""

        def pin(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

        pinned = pin({"mask": self.mask, "weight": self.weight})
        return replace(self, inputs=pin(self.inputs), targets=pin(self.targets), **pinned)

    @property
    def frames(self) -> int:
        """Real frames in the batch."""
        return int(self.mask.sum())


def take_frames(example: Example, positions: np.ndarray) -> Example:
    """The example at frames ``positions`` (T',), every time axis of its inputs and targets moved alike.

    A fraction is between two frames: floats are interpolated there, unless one of the two is missing (NaN); whole
    numbers, such as classes and tokens, are those of the nearer frame.
    """
    positions = np.asarray(positions, dtype=np.float64).clip(0, example.frames - 1)

    def moved(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _take(np.asarray(array), example, name, positions) for name, array in fields.items()}

    return replace(example, inputs=moved(example.inputs), targets=moved(example.targets), frames=len(positions))


def _take(array: np.ndarray, example: Example, name: str, positions: np.ndarray) -> np.ndarray:
    for axis, kind in enumerate(example.axes.get(name, "T")[: array.ndim]):
        if kind == "T" and array.shape[axis]:
            array = np.moveaxis(_interpolate(np.moveaxis(array, axis, 0), positions), 0, axis)
    return array


def _interpolate(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """array (T, ...) -> (T', ...)."""
    nearest = array[np.rint(positions).astype(np.int64)]
    if array.dtype.kind != "f" or not np.mod(positions, 1).any():
        return nearest
    low = np.floor(positions).astype(np.int64)
    share = (positions - low).astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    between = array[low] * (1 - share) + array[np.minimum(low + 1, len(array) - 1)] * share
    return np.where(np.isnan(between), nearest, between)


def collate(examples: list[Example], multiple: int = 1) -> Batch:
    """Pad every ragged axis to its longest: inputs with 0, class targets with -1, value targets with NaN.

    Frames are padded on to a ``multiple``, which changes nothing but how many different sizes batches have.
    Raises InputError naming the id when a time axis and the example's ``frames`` differ (a target may have no frame at
    all: nothing is scored), or when a fixed axis or the names of the fields differ from those of the first example.
    """
    longest = -(-max(example.frames for example in examples) // multiple) * multiple
    lengths = torch.tensor([example.frames for example in examples])
    return Batch(
        ids=[example.id for example in examples],
        inputs=_stack(examples, longest, target=False),
        mask=mask_of(lengths, longest),
        targets=_stack(examples, longest, target=True),
        weight=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        axes=examples[0].axes,
    )


def _stack(examples: list[Example], longest: int, target: bool) -> dict[str, Tensor]:
    fields = [example.targets if target else example.inputs for example in examples]
    for example, values in zip(examples, fields, strict=True):
        if values.keys() != fields[0].keys():
            raise InputError(f"{example.id} has fields {sorted(values)}, {examples[0].id} {sorted(fields[0])}")
    stacked = {}
    for name in fields[0]:
        axes, arrays = examples[0].axes.get(name, "T"), [np.asarray(values[name]) for values in fields]
        for example, array in zip(examples, arrays, strict=True):
            _check_shape(example, name, array, axes, arrays[0], target)
        stacked[name] = _pad(arrays, axes, longest, target)
    return stacked


def _check_shape(example: Example, name: str, array: np.ndarray, axes: str, first: np.ndarray, target: bool) -> None:
    kinds = axes[: array.ndim].ljust(array.ndim)
    for axis, (kind, size) in enumerate(zip(kinds, array.shape, strict=True)):
        if kind == "T" and size != example.frames and not (target and size == 0):
            raise InputError(f"{example.id}: {name!r} has {size} frames, the example {example.frames}")
        if array.ndim != first.ndim or (kind in " H" and size != first.shape[axis]):
            raise InputError(f"{example.id}: {name!r} has shape {array.shape}, others in the batch {first.shape}")


def _pad(arrays: list[np.ndarray], axes: str, longest: int, target: bool) -> Tensor:
    first = arrays[0]
    dtype = np.dtype(np.float32) if first.dtype in (np.float64, np.float16) else first.dtype
    if target and dtype.kind in "iub":
        dtype = np.dtype(np.int64)
    shape = list(first.shape)
    for axis in range(min(len(axes), first.ndim)):
        if axes[axis] == "T":
            shape[axis] = longest
        elif axes[axis] == "U":
            shape[axis] = max(array.shape[axis] for array in arrays)
    # float16 is kept until here: the store, the workers and the queue move half the bytes
    padded = np.full((len(arrays), *shape), (NO_CLASS if dtype.kind == "i" else NO_VALUE) if target else 0, dtype)
    for item, array in enumerate(arrays):
        padded[(item, *(slice(size) for size in array.shape))] = array
    return torch.from_numpy(padded)
