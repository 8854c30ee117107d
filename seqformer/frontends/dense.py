"""Frames that are numbers already: sensors, embeddings, profiles over height, precomputed spectrograms."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqformer.frontends.features import Features, field_of
from seqformer.nn.differences import with_differences
from seqformer.nn.mask import zero_padding
from seqformer.nn.standardize import Standardize, standardize_item
from seqformer.registry import register


@register("frontend", "dense")
class Dense(nn.Module):
    """inputs["x"] (B, T, channels), mask (B, T) -> Features(x (B, T, dim), mask), float32.

    ``static`` numbers of an item, inputs["static"] (B, static), are repeated on every frame after its channels (a
    column of air with its surface, a recording with its subject). ``normalize``: ``item`` takes mean 0 and deviation
    1 of each channel over the real frames of each item, not of static numbers; ``fold`` takes those of the rows that
    ``fit`` was given, static numbers included. ``clip`` then bounds all values on both sides. ``differences`` appends,
    for each of these steps, the channels' x[t + step] - x[t]. A missing value (NaN), or a difference to one or beyond
    the end, becomes 0 last. Raises ValueError for a step below 1.
    """

    def __init__(
        self,
        channels: int,
        normalize: Literal["none", "item", "fold"] = "none",
        static: int = 0,
        clip: float | None = None,
        differences: tuple[int, ...] = (),
    ):
        super().__init__()
        if any(step < 1 for step in differences):
            raise ValueError(f"differences {list(differences)} must be of 1 frame or more")
        self.channels, self.static, self.normalize, self.clip = channels, static, normalize, clip
        self.steps = tuple(differences)
        self.dim = channels * (1 + len(self.steps)) + static
        if normalize == "fold":
            self.standardize = Standardize(channels + static)

    @property
    def fit(self):
        """``fit(examples)`` with the inputs of a fold's training rows; there is none but for ``normalize`` fold."""
        standardize = self.standardize

        def fit(examples: Iterable[Mapping[str, np.ndarray]]) -> None:
            standardize.fit(self._joined(example) for example in examples)

        return fit

    def _joined(self, example: Mapping[str, np.ndarray]) -> np.ndarray:
        x = np.asarray(example["x"])
        if not self.static:
            return x
        return np.concatenate([x, np.broadcast_to(example["static"], (len(x), self.static))], axis=1)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x = inputs["x"].float()
        if self.normalize == "item":
            x = standardize_item(x, mask)
        if self.static:
            static = field_of(inputs, "static", f"the dense frontend reads {self.static} numbers of an item there")
            x = torch.cat([x, static.float()[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        if self.normalize == "fold":
            x = self.standardize(x)
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if self.steps:
            moving = with_differences(x[..., : self.channels], mask, self.steps)
            x = torch.cat([x, moving[..., self.channels :]], dim=-1)
        return Features(zero_padding(x.nan_to_num(nan=0.0), mask), mask)
