"""Rows of audio with states of their frames, which follow where a recording is played faster or slower."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from seqformer import Example, SequenceDataset, register, stretch_states

if TYPE_CHECKING:
    import polars

    from seqformer import Targets


@register("dataset", "aligned_rows")
class AlignedRows:
    """The library's ``rows``, every target being states of frames ``hop_ms`` apart: as many as the audio then has."""

    def __init__(
        self,
        table: "polars.DataFrame",
        targets: "Targets | None",
        rate: int,
        seed: int,
        augment: Callable[[Example, int], Example] | None = None,
        training: bool = False,
        hop_ms: float = 10.0,
    ):
        self.rows = SequenceDataset(table, targets, rate, seed, augment, training)
        self.ids, self.rate, self.columns = self.rows.ids, self.rows.rate, self.rows.columns
        self.hop = round(rate * hop_ms / 1000)

    def __len__(self) -> int:
        return len(self.rows)

    def frames(self, epoch: int) -> np.ndarray:
        return self.rows.frames(epoch)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        example = self.rows[key]
        frames = -(-example.frames // self.hop)
        return replace(example, targets={name: stretch_states(s, frames) for name, s in example.targets.items()})
