"""Example and Batch: what one row becomes, and what a model sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqformer.nn.mask import mask_of

# Fill of padded targets: a class or unit that is not scored, a value that is not scored.
NO_CLASS, NO_VALUE = -1, float("nan")


@dataclass(frozen=True)
class Example:
    """One row, read and augmented.

    ``inputs`` and ``targets`` are named numpy arrays or numbers. ``axes`` says for a field which of its axes are time
    ("T", padded to the longest of the batch) or another ragged axis ("U"); every other axis is fixed. A field without
    an entry has time first if it has any axis at all.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    frames: int
    targets: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    axes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Examples padded to one length: ids (B), inputs and targets (B, ...), mask (B, T), weight (B,)."""

    ids: list[str]
    inputs: dict[str, Tensor]
    mask: Tensor
    targets: dict[str, Tensor]
    weight: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; copies do not block the host when the memory is pinned."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

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


def collate(examples: list[Example]) -> Batch:
    """Pad every ragged axis to its longest: inputs with 0, class targets with -1, value targets with NaN.

    Raises ValueError naming the id when an input's time axis and the example's ``frames`` differ.
    """
    longest = max(example.frames for example in examples)
    for example in examples:
        for name, array in example.inputs.items():
            axes = example.axes.get(name, "T")
            if axes.startswith("T") and np.ndim(array) and len(array) != example.frames:
                raise ValueError(f"{example.id}: input {name!r} has {len(array)} frames, the example {example.frames}")

    def stack(fields: list[Mapping[str, Any]], target: bool) -> dict[str, Tensor]:
        return {
            name: _pad(
                [np.asarray(values[name]) for values in fields], examples[0].axes.get(name, "T"), longest, target
            )
            for name in fields[0]
        }

    lengths = torch.tensor([example.frames for example in examples])
    return Batch(
        ids=[example.id for example in examples],
        inputs=stack([example.inputs for example in examples], target=False),
        mask=mask_of(lengths, longest),
        targets=stack([example.targets for example in examples], target=True),
        weight=torch.tensor([example.weight for example in examples], dtype=torch.float32),
    )


def _pad(arrays: list[np.ndarray], axes: str, longest: int, target: bool) -> Tensor:
    first = arrays[0]
    dtype = first.dtype if first.dtype != np.float64 else np.dtype(np.float32)
    if dtype == np.float16 and not target:
        dtype = np.dtype(np.float32)  # kept half-size until here: the store, the workers and the queue move fewer bytes
    if target and np.issubdtype(dtype, np.integer):
        dtype = np.dtype(np.int64)
    shape = list(first.shape)
    for axis in range(min(len(axes), first.ndim)):
        if axes[axis] == "T":
            shape[axis] = longest
        elif axes[axis] == "U":
            shape[axis] = max(array.shape[axis] for array in arrays)
    fill = 0 if not target else (NO_CLASS if np.issubdtype(dtype, np.integer) else NO_VALUE)
    padded = np.full((len(arrays), *shape), fill, dtype=dtype)
    for item, array in enumerate(arrays):
        padded[(item, *(slice(size) for size in array.shape))] = array
    return torch.from_numpy(padded)
