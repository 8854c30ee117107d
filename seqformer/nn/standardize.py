"""Mean 0 and deviation 1: by what the rows of a fold show, or by an item's own values. A missing value is NaN."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from seqformer.nn.mask import zero_padding


class Standardize(nn.Module):
    """(x - mean) / deviation per channel: x (..., channels) -> (..., channels), by numbers that ``fit`` finds.

    They are buffers: a checkpoint holds those of its fold. Before ``fit`` x stays as it is.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def fit(self, arrays: Iterable[np.ndarray]) -> None:
        """Take mean and deviation over all finite values of arrays (..., channels), each seen once, in float64.

        A channel that is constant, or never seen, keeps a deviation of 1.
        """
        count, mean, squares = np.zeros((3, len(self.mean)))
        for array in arrays:
            # Each array around its own mean, then joined (Chan et al. 1979): sums of squares alone lose the digits of
            # a small deviation beside a large mean.
            x = np.asarray(array, np.float64).reshape(-1, len(mean))
            real = np.isfinite(x)
            more, total = real.sum(axis=0), count + real.sum(axis=0)
            own = np.where(real, x, 0).sum(axis=0) / more.clip(1)
            share = more / total.clip(1)
            squares += np.square(x - own, where=real, out=np.zeros_like(x)).sum(axis=0)
            squares += (own - mean) ** 2 * count * share
            mean += (own - mean) * share
            count = total
        deviation = np.sqrt(squares / count.clip(1))
        varies = deviation > 1e-9 * np.abs(mean)  # less than float32 tells apart: the rounding of a constant
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.where(varies, deviation, 1.0)))


def standardize_item(x: Tensor, mask: Tensor, axes: tuple[int, ...] = (1,), centre: Tensor | None = None) -> Tensor:
    """x (B, T, ...), mask (B, T) -> mean 0 and deviation 1 over ``axes``, by the finite values of real frames.

    With ``centre``, which broadcasts over x, that becomes 0 and the root mean square distance from it 1. What is
    missing or padded becomes NaN.
    """
    missing = missing_of(x, mask)
    count = (~missing).sum(dim=axes, keepdim=True).clamp(min=1)
    if centre is None:
        centre = x.masked_fill(missing, 0).sum(dim=axes, keepdim=True) / count
    x = (x - centre).masked_fill(missing, 0)
    x = x / (x.square().sum(dim=axes, keepdim=True) / count + 1e-5).sqrt()
    return x.masked_fill(missing, torch.nan)


def missing_of(x: Tensor, mask: Tensor) -> Tensor:
    """Where x (B, T, ...) has no finite value, or mask (B, T) no frame."""
    return ~zero_padding(x.isfinite(), mask)
