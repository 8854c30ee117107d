"""Stems: from raw features (B, T, F) to frames (B, ceil(T / stride), D)."""

from typing import Literal

from torch import Tensor, nn

from seqformer.nn.mask import stride_mask, strided, zero_padding

Stem = Literal["depthwise_conv2d", "conv2d", "linear"]


class Conv2dStem(nn.Module):
    """Two 3x3 convolutions of stride 2 over (time, feature), then a linear: 4x fewer frames.

    ``depthwise`` makes the second one depthwise + pointwise, without an activation between (Squeezeformer,
    section 3.1.3). Padding 1 on both sides, so T -> ceil(T / 4); frames are zeroed before each convolution.
    """

    stride = 4

    def __init__(self, in_dim: int, dim: int, depthwise: bool = True):
        super().__init__()
        self.first = nn.Conv2d(1, dim, 3, stride=2, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim if depthwise else 1)
        self.pointwise = nn.Linear(dim, dim) if depthwise else nn.Identity()
        self.linear = nn.Linear(strided(in_dim, 4) * dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x_B1TF = zero_padding(x, mask).unsqueeze(1)
        x = self.first(x_B1TF).relu().permute(0, 2, 3, 1)  # (B, T, F, C): channels last from here on
        mask = stride_mask(mask, 2)
        x = self.second(zero_padding(x, mask).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.linear(self.pointwise(x).relu().flatten(2)), stride_mask(mask, 2)


class LinearStem(nn.Module):
    """One linear layer at the full frame rate, for short sequences: landmarks, tokens, sensors."""

    stride = 1

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(zero_padding(x, mask)), mask


def make_stem(kind: Stem, in_dim: int, dim: int) -> nn.Module:
    """The stem of a kind: a module with ``stride`` and (x, mask) -> (x, mask)."""
    if kind == "linear":
        return LinearStem(in_dim, dim)
    return Conv2dStem(in_dim, dim, depthwise=kind == "depthwise_conv2d")
