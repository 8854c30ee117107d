"""What every frontend returns."""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """x (B, T, F), mask (B, T), and an optional bias (B, H, T, T) for the attention logits."""

    x: Tensor
    mask: Tensor
    bias: Tensor | None = None
