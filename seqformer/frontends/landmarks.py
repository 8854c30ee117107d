"""Landmarks: points with coordinates in every frame, some of them not detected."""

from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.errors import InputError, nearest
from seqformer.frontends.features import Features
from seqformer.nn.differences import with_differences
from seqformer.nn.mask import strided, zero_padding
from seqformer.nn.norm import MaskedBatchNorm
from seqformer.nn.standardize import missing_of, standardize_item
from seqformer.registry import register

Points = str | list[int] | list[str]


class PointConv(nn.Module):
    """Neighbouring points and frames together: x (B, T, L, C), mask (B, T) -> (B, T, width).

    Convolution 3x3 that takes every second point, BatchNorm, Swish, linear over all points, BatchNorm; both norms
    count real frames only. Source: the 1st place of asl-fingerspelling, which masks the second norm alone.
    """

    def __init__(self, points: int, channels: int, width: int, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, stride=(1, 2), padding=1, bias=False)
        self.norm = MaskedBatchNorm(hidden)
        self.linear = nn.Linear(strided(points, 2) * hidden, width, bias=False)
        self.out_norm = MaskedBatchNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y_BTLC = self.conv(zero_padding(x, mask).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.norm(y_BTLC, mask)
        return self.out_norm(self.linear(F.silu(y).flatten(2)), mask)


class PointLinear(nn.Module):
    """All values of a frame through one linear layer: x (B, T, L, C), mask (B, T) -> (B, T, width)."""

    def __init__(self, points: int, channels: int, width: int):
        super().__init__()
        self.linear = nn.Linear(points * channels, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x.flatten(2))


@register("frontend", "landmarks")
class Landmarks(nn.Module):
    """inputs["x"] (B, T, points, coordinates), NaN = not detected, mask (B, T) -> Features(x (B, T, dim), mask).

    ``standardize`` moves each item's coordinates to mean 0 and deviation 1 over all its frames and points, each axis
    by itself; with ``reference`` points, their mean becomes 0, and the deviation is that from it (the mean of all
    points where none of them was seen). ``differences`` adds for each of these steps the movement x[t + step] - x[t]
    of every point as further coordinates, 0 to a frame that is not there; points not detected become 0 last.

    Without ``width`` the values of a frame stand side by side: dim = points * coordinates * (1 + differences), 708
    for the 118 points of asl-signs' 1st place. With it a linear layer takes them there, or a ``PointConv`` of
    ``conv`` channels where that is not None (32: asl-fingerspelling's 1st place).

    ``parts`` names groups of points: "0:21" (the end not included), a list of indices, or patterns over the ``names``
    of all points, such as "left_hand_*". Each is standardised once more, in every frame by itself, and with ``width``
    has a layer of its own to its share of it; they are added, side by side, to that of all points. Without, they
    follow the values. Raises ValueError on points that are not there and choices that do not go together.
    """

    def __init__(
        self,
        points: int,
        coordinates: int = 2,
        standardize: bool = True,
        reference: int | list[int] | None = None,
        differences: tuple[int, ...] = (1, 2),
        width: int | None = None,
        conv: int | None = None,
        parts: dict[str, str | list[int] | list[str]] | None = None,
        names: list[str] | None = None,
    ):
        super().__init__()
        _check(points, standardize, reference, differences, width, conv, parts, names)
        self.shape, self.standardize, self.steps = (points, coordinates), standardize, tuple(differences)
        self.reference = [reference] if isinstance(reference, int) else reference
        self.parts = {name: points_of(which, points, names) for name, which in (parts or {}).items()}
        channels = coordinates * (1 + len(self.steps))
        self.whole, self.branches = None, None
        self.dim = width or channels * (points + sum(map(len, self.parts.values())))
        if width is not None:
            self.whole = _layer(points, channels, width, conv)
            self.branches = nn.ModuleList(
                _layer(len(which), channels, width // len(self.parts), conv) for which in self.parts.values()
            )

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x = inputs["x"].float()
        if tuple(x.shape[2:]) != self.shape:
            raise InputError(f"landmarks have shape {tuple(x.shape[2:])} a frame; expected {self.shape}")
        if self.standardize:
            x = standardize_item(x, mask, (1, 2), None if self.reference is None else self._centre(x, mask))
        parts = [standardize_item(x[:, :, which], mask, (2,)) for which in self.parts.values()]
        whole, *parts = [with_differences(part, mask, self.steps).nan_to_num(nan=0.0) for part in (x, *parts)]
        if self.whole is None:
            return Features(torch.cat([part.flatten(2) for part in (whole, *parts)], dim=-1), mask)
        x = self.whole(whole, mask)
        if parts:
            x = x + torch.cat([layer(part, mask) for layer, part in zip(self.branches, parts, strict=True)], dim=-1)
        return Features(zero_padding(x, mask), mask)

    def _centre(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mean of the reference points over the item (B, 1, 1, C), or of all points where none of them was seen."""
        seen = ~missing_of(x, mask)
        x = x.masked_fill(~seen, 0)
        count, total = (value[:, :, self.reference].sum(dim=(1, 2), keepdim=True) for value in (seen, x))
        every = x.sum(dim=(1, 2), keepdim=True) / seen.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        return torch.where(count > 0, total / count.clamp(min=1), every)


def _layer(points: int, channels: int, width: int, conv: int | None) -> nn.Module:
    return PointLinear(points, channels, width) if conv is None else PointConv(points, channels, width, conv)


def points_of(which: Points, points: int, names: list[str] | None = None) -> list[int]:
    """Indices of the points that a part names (see Landmarks). Raises ValueError when there is none."""
    if isinstance(which, str) and ":" in which:
        start, _, stop = which.partition(":")
        found = list(range(int(start), int(stop)))
    elif isinstance(which, str) or any(isinstance(one, str) for one in which):
        patterns = [which] if isinstance(which, str) else which
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name in names or []):
                raise ValueError(f"no point is named like {pattern!r}; {nearest(pattern, names or [])}")
        found = [index for index, name in enumerate(names) if any(fnmatch(name, pattern) for pattern in patterns)]
    else:
        found = list(which)
    if not found or min(found) < 0 or max(found) >= points:
        raise ValueError(f"points {which!r}: expected one or more of 0 to {points - 1}")
    return found


def _check(points, standardize, reference, differences, width, conv, parts, names) -> None:
    """Raise ValueError on choices of Landmarks that do not go together."""
    if any(step < 1 for step in differences):
        raise ValueError(f"differences {list(differences)} must be of 1 frame or more")
    if reference is not None:
        if not standardize:
            raise ValueError("reference is what standardize centres on, which is off")
        points_of([reference] if isinstance(reference, int) else reference, points)
    if conv is not None and width is None:
        raise ValueError("conv needs the width of the layer that follows it")
    if width is not None and parts and width % len(parts):
        raise ValueError(f"width {width} is not a multiple of {len(parts)} parts")
    if names is not None and len(names) != points:
        raise ValueError(f"{len(names)} names for {points} points")
