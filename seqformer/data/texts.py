"""Texts alone as examples: the units of each, and which comes behind them. What a language model is trained on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from seqformer.batch import Example
from seqformer.data.columns import ValueColumn
from seqformer.data.targets import Targets, Units
from seqformer.errors import InputError
from seqformer.registry import register

if TYPE_CHECKING:
    import polars

EDGE = 0  # the begin before a text's units and the end behind them: no text holds this unit


@register("dataset", "texts")
class TextDataset:
    """Each row's text, in a column that is a target, as one example: what ``path`` names is never read.

    Input ``x`` (U + 1,) is a begin and the units, the target the units and an end. The manifest may be one of audio, or
    a text file, one text a line. Raises InputError when the target is no text, or there is none: a model of texts
    predicts nothing but how likely they are.
    """

    rate = None

    def __init__(
        self,
        table: "polars.DataFrame",
        targets: Targets | None = None,
        rate: int | None = None,
        seed: int = 0,
        augment: Callable | None = None,
        training: bool = False,
    ):
        columns = [
            name for name, encoder in (targets.encoders if targets else {}).items() if isinstance(encoder, Units)
        ]
        if len(columns) != 1:
            raise InputError(
                "dataset texts needs one target of text, a text section in the config, and rows with texts"
            )
        if augment is not None:
            raise InputError("dataset texts knows no augmentation: leave augment out")
        (self.column,) = columns
        self.columns = {self.column: ValueColumn(table[self.column])}
        self.ids, encode = table["id"].to_numpy().astype(str), targets.encoders[self.column].tokenizer.encode
        self.weight = table["weight"].to_numpy() if "weight" in table.columns else np.ones(table.height)
        units = [encode(text) for text in self.columns[self.column]]
        self.lengths = np.array([len(one) + 1 for one in units])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.edged = np.concatenate([np.array([EDGE, *one], dtype=np.int32) for one in units])  # one array for workers

    def __len__(self) -> int:
        return len(self.ids)

    def frames(self, epoch: int) -> np.ndarray:
        """Frames (rows,) of each example."""
        return self.lengths

    def __getitem__(self, key: tuple[int, int]) -> Example:
        _, index = key
        x = self.edged[self.starts[index] : self.starts[index] + self.lengths[index]].astype(np.int64)
        target = {self.column: np.append(x[1:], EDGE)}
        return Example(str(self.ids[index]), {"x": x}, len(x), target, float(self.weight[index]), {self.column: "T"})
