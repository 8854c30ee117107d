"""Frames that are features already: sensors, landmarks, embeddings, precomputed spectrograms."""

from typing import Literal

from torch import Tensor, nn

from seqformer.frontends.features import Features
from seqformer.nn.mask import zero_padding
from seqformer.registry import register


@register("frontend", "dense")
class Dense(nn.Module):
    """inputs["x"] (B, T, channels), mask (B, T) -> Features, float32.

    A missing value (NaN) becomes 0, after the normalisation where there is one: ``item`` takes mean 0 and
    deviation 1 of each channel over the real frames of each item.
    """

    def __init__(self, channels: int, normalize: Literal["none", "item"] = "none"):
        super().__init__()
        self.dim, self.normalize = channels, normalize

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x = inputs["x"].float()
        if self.normalize == "item":
            # Missing frames differ per channel, so each channel counts its own: the mask is of values, (B, T, F).
            real = mask[..., None] & x.isfinite()
            count = real.sum(dim=1, keepdim=True).clamp(min=1)
            mean = x.masked_fill(~real, 0).sum(dim=1, keepdim=True) / count
            centred = (x - mean).masked_fill(~real, 0)
            x = centred / (centred.square().sum(dim=1, keepdim=True) / count + 1e-5).sqrt()
        return Features(zero_padding(x.nan_to_num(nan=0.0), mask), mask)
