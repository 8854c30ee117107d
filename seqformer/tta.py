"""Test-time augmentation: the same rows changed in known ways, and predictions put back in their own frames."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from seqformer.augment.compose import Augment
from seqformer.batch import NO_CLASS, Batch, Example
from seqformer.data.dataset import VALID, draw_seed
from seqformer.errors import InputError

PLACES = "tta_places"  # a target of changed examples: the frame number that each of their frames had


class ChangedDataset:
    """The validation examples of a dataset, each changed by one transform of a config's ``tta`` list, with p = 1.

    Example ``index`` is changed by draws of (seed, variant, index). Its only target is ``PLACES``: as the transform
    moves frames, it moves their numbers alike, whatever it does; empty where it makes frames that were none.
    """

    def __init__(self, dataset, part: dict[str, Any], variant: int, seed: int):
        self.dataset, self.name, self.key = dataset, part["name"], (seed, variant)
        self.change = Augment([part | {"p": 1.0}], dataset.rate)

    @property
    def rate(self) -> int | None:
        return self.dataset.rate

    def __len__(self) -> int:
        return len(self.dataset)

    def frames(self, epoch: int) -> np.ndarray:
        """Frames (rows,) of each row as it is, for the planner; what is read may be longer."""
        return self.dataset.frames(epoch)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        example = self.dataset[VALID, key[1]]
        axes = {name: axes for name, axes in example.axes.items() if name in example.inputs} | {PLACES: "T"}
        example = replace(example, targets={PLACES: np.arange(example.frames)}, axes=axes)
        changed = self.change(example, draw_seed(*self.key, key[1]))
        places = np.asarray(changed.targets[PLACES])
        return replace(changed, targets={PLACES: places if len(places) == changed.frames else places[:0]})


def put_back(dataset, batch: Batch, frames: np.ndarray) -> tuple[Batch, Callable[[list], list]]:
    """A batch as the model takes it, and a function that puts its predictions per frame back in the rows' own order.

    ``frames`` (B,) are those of the rows as they are.
    """
    if not isinstance(dataset, ChangedDataset):
        return batch, lambda predictions: predictions
    places = [row[row != NO_CLASS] for row in batch.targets[PLACES].numpy()]

    def back(predictions: list) -> list:
        items = zip(predictions, places, frames, batch.ids, strict=True)
        return [undo(item, place, int(count), dataset.name, name) for item, place, count, name in items]

    return replace(batch, targets={}), back


def undo(prediction: np.ndarray, places: np.ndarray, frames: int, name: str, row_id: str) -> np.ndarray:
    """A prediction (T', ...) per frame in the order of the row's own ``frames`` frames.

    Where the transform left every frame in place it stays as it is, at any frame rate of the output. Raises InputError
    when frames were moved so that the output cannot follow: some are gone, doubled or between two.
    """
    if np.array_equal(places, np.arange(frames)):
        return prediction
    if not np.array_equal(np.sort(places), np.arange(frames)):
        raise InputError(f"tta: {name!r} changes the number of frames or loses some of row {row_id}; its predictions "
                         "per frame cannot be put back")  # fmt: skip
    if len(prediction) != frames:
        raise InputError(f"tta: {name!r} moves frames, but the predictions of row {row_id} have another frame rate: "
                         f"{len(prediction)} for {frames}")  # fmt: skip
    found = np.empty_like(prediction)
    found[places] = prediction
    return found
