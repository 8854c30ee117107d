"""Stems: from raw features (B, T, F) to frames (B, ceil(T / stride), D).

``reach`` (left, right): frame j sees the input frames stride * j - left ... stride * j + right, and no others.
"""

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.mask import lengths_of, mask_of, stride_mask, strided, zero_padding
from seqformer.nn.norm import MaskedBatchNorm
from seqformer.nn.paths import fast_on_cpu

Stem = Literal["none", "linear", "conv2d", "depthwise_conv2d", "vgg", "signal"]
PIECE = 2**20  # numbers of the first map of a Conv2dStem at a time, on a CPU
STRIDES = {"none": 1, "linear": 1, "conv2d": 4, "depthwise_conv2d": 4, "vgg": 3, "signal": 16}


class NoStem(nn.Module):
    """Frames that already have the model's width, at the full rate."""

    stride, reach = 1, (0, 0)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return zero_padding(x, mask), mask


class LinearStem(nn.Module):
    """One linear layer at the full frame rate, for short sequences: landmarks, tokens, sensors."""

    stride, reach = 1, (0, 0)

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(zero_padding(x, mask)), mask


class Conv2dStem(nn.Module):
    """3x3 convolutions of stride 2 over (time, feature) with ReLU, then a linear: ``stride`` times fewer frames.

    ``depthwise`` makes all but the first depthwise + pointwise, without an activation between (Squeezeformer, section
    3.1.3; FastConformer with stride 8). Padding 1 on both sides, so T -> ceil(T / stride); frames are zeroed before
    each convolution. ``official`` is the arithmetic of the Squeezeformer repository instead: one zero at the end of
    either axis, T -> floor(T / 2) each time, padding not zeroed, and a mask that may count two frames too many.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        stride: int = 4,
        channels: int | None = None,
        depthwise: bool = True,
        official: bool = False,
    ):
        super().__init__()
        channels, stages = channels or dim, round(math.log2(stride))
        self.stride, self.official = stride, official
        self.reach = (0, 2 * stride - 2) if official else (stride - 1, stride - 1)
        sides = 0 if official else 1
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=sides)
        groups = channels if depthwise else 1
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=sides, groups=groups) for _ in range(stages - 1)
        )
        self.pointwise = nn.ModuleList(nn.Linear(channels, channels) for _ in range((stages - 1) * depthwise))
        self.linear = nn.Linear(strided(in_dim, stride) * channels, dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if fast_on_cpu(x) and not self.official:
            return self._in_pieces(x, mask)
        x, mask = self._halved(self.first, x[..., None], mask)
        x = x.relu()
        for index, conv in enumerate(self.convs):
            x, mask = self._halved(conv, x, mask)
            if self.pointwise:
                # A linear layer of four axes, written as the convolution it is: export cannot prove what it reshapes.
                weight, bias = self.pointwise[index].weight, self.pointwise[index].bias
                x = F.conv2d(x.permute(0, 3, 1, 2), weight[..., None, None], bias).permute(0, 2, 3, 1)
            x = x.relu()
        if self.official:
            mask = mask_of(lengths_of(mask), x.shape[1])
        return self.linear(x.flatten(2)), mask

    def _in_pieces(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The first map has many times the numbers of the features: a piece of it at a time stays in the cache."""
        masks = [mask]
        for _ in range(1 + len(self.convs)):
            masks.append(stride_mask(masks[-1], 2))
        frames = masks[-1].shape[1]
        size = 4 * PIECE // (self.stride * x.shape[2] * self.first.out_channels)
        items, size = max(1, size // frames), max(8, size)
        rows = []
        for item in range(0, len(x), items):
            part, part_masks = x[item : item + items], [mask[item : item + items] for mask in masks]
            starts = range(0, frames, size)
            stretches = [self._stretch(part, part_masks, first, min(frames, first + size)) for first in starts]
            rows.append(torch.cat(stretches, dim=1) if len(stretches) > 1 else stretches[0])
        return torch.cat(rows), masks[-1]

    def _stretch(self, x: Tensor, masks: list[Tensor], first: int, last: int) -> Tensor:
        """Output frames [first, last) of x (B, T, F), whose masks are those before each convolution and after all."""
        spans = [(first, last)]
        for _ in self.convs:
            spans.insert(0, (2 * spans[0][0] - 1, 2 * spans[0][1]))  # of a kernel of 3 and a stride of 2
        low, high = 2 * spans[0][0] - 1, 2 * spans[0][1]
        x = x[:, max(0, low) : high, :, None]
        for index, conv in enumerate([self.first, *self.convs]):
            real, around = masks[index], (max(0, -low), max(0, high - masks[index].shape[1]))
            x = F.pad(zero_padding(x, real[:, max(0, low) : high]), (0, 0, 0, 0, *around)).permute(0, 3, 1, 2)
            y_BCTF = F.conv2d(x, conv.weight, conv.bias, 2, (0, 1), groups=conv.groups)
            if self.pointwise and index:
                x = self.pointwise[index - 1](y_BCTF.permute(0, 2, 3, 1)).relu_()
            else:
                x = y_BCTF.relu_().permute(0, 2, 3, 1)
            # What lies before the first frame and after the last is zeros to the next, not what was computed here.
            low, high = spans[index]
            x = x[:, max(0, -low) : masks[index + 1].shape[1] - low]
        return self.linear(x.flatten(2))

    def _halved(self, conv: nn.Conv2d, x_BTFC: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A strided convolution on channels-last frames."""
        if self.official:
            # The repository's own length: floor(L / 2) + 1, kept beyond the frames there are, for the next one counts
            # from it.
            length = lengths_of(mask) // 2 + 1
            y_BCTF = conv(F.pad(x_BTFC.permute(0, 3, 1, 2), (0, 1, 0, 1)))
            return y_BCTF.permute(0, 2, 3, 1), mask_of(length, mask.shape[1] // 2 + 1)
        y_BCTF = conv(zero_padding(x_BTFC, mask).permute(0, 3, 1, 2))
        return y_BCTF.permute(0, 2, 3, 1), stride_mask(mask, 2)


class VGGStem(nn.Module):
    """The front of the Switchboard hybrid: four 3x3 convolutions with Swish, the last strided in time, and a linear.

    ``channels`` are those of the first and the last; the two between have twice as many. Features are halved by
    max-pooling after the first. Source: Zeineldeen et al. 2022 (arXiv 2111.03442), its configs.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 3, channels: int = 32):
        super().__init__()
        self.stride, self.reach = stride, (3, 5)
        sizes = [(1, channels), (channels, 2 * channels), (2 * channels, 2 * channels)]
        self.convs = nn.ModuleList(nn.Conv2d(inner, outer, 3, padding=1) for inner, outer in sizes)
        # No padding before: frame j sees 3j, 3j + 1, 3j + 2, whatever the length (TensorFlow's 'same' does so where
        # the length is a multiple of the stride).
        self.last = nn.Conv2d(2 * channels, channels, 3, stride=(stride, 1), padding=(0, 1))
        self.linear = nn.Linear(in_dim // 2 * channels, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x[..., None]
        for index, conv in enumerate(self.convs):
            x = F.silu(conv(zero_padding(x, mask).permute(0, 3, 1, 2)))
            x = (F.max_pool2d(x, (1, 2)) if index == 0 else x).permute(0, 2, 3, 1)
        frames = strided(mask.shape[1], self.stride)
        beyond = (frames - 1) * self.stride + 3 - mask.shape[1]
        x = F.pad(zero_padding(x, mask), (0, 0, 0, 0, 0, beyond))
        x = F.silu(self.last(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.linear(x.flatten(2)), stride_mask(mask, self.stride)


class SignalStem(nn.Module):
    """Convolutions of kernel 5 and stride 2 over raw channels, each with BatchNorm and Swish: EEG, sensors, 2x to 16x.

    Four strides of 2 are what a winner of HMS brain activity put before a Squeezeformer; kernel and norm are ours.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 16, channels: int | None = None):
        super().__init__()
        self.stride, self.reach = stride, (2 * stride - 2, 2 * stride - 2)
        stages = round(math.log2(stride))
        widths = [in_dim, *[channels or dim] * (stages - 1), dim]
        self.convs = nn.ModuleList(
            nn.Conv1d(inner, outer, 5, stride=2, padding=2) for inner, outer in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(width) for width in widths[1:])

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # An image of height 1, as in DepthwiseConv: fast, and export can prove its length.
            x_BC1T = zero_padding(x, mask).transpose(1, 2).unsqueeze(2)
            y_BC1T = F.conv2d(x_BC1T, conv.weight.unsqueeze(2), conv.bias, stride=(1, 2), padding=(0, 2))
            x, mask = y_BC1T.squeeze(2).transpose(1, 2), stride_mask(mask, 2)
            x = F.silu(norm(x, mask))
        return x, mask


def make_stem(
    kind: Stem,
    in_dim: int,
    dim: int,
    stride: int | None = None,
    channels: int | None = None,
    official: bool = False,
) -> nn.Module:
    """The stem of a kind: a module with ``stride`` and (x, mask) -> (x, mask).

    ``stride`` None is the kind's usual one; ``channels`` is the inner width of the convolutions, by default ``dim``, of
    ``vgg`` 32.
    Raises ValueError on a stride that the kind does not have.
    """
    usual = STRIDES[kind]
    stride = usual if stride is None else stride
    possible = {"vgg": (1, 2, 3, 4, 5), "none": (1,), "linear": (1,)}.get(kind, (2, 4, 8, 16))
    if stride not in possible:
        raise ValueError(f"stem {kind!r} has no stride {stride}; it has {', '.join(map(str, possible))}")
    if kind == "none":
        if in_dim != dim:
            raise ValueError(f"stem 'none' keeps the {in_dim} features of a frame, and dim is {dim}; take 'linear'")
        return NoStem()
    if kind == "linear":
        return LinearStem(in_dim, dim)
    if kind == "vgg":
        return VGGStem(in_dim, dim, stride, channels or 32)
    if kind == "signal":
        return SignalStem(in_dim, dim, stride, channels)
    return Conv2dStem(in_dim, dim, stride, channels, kind == "depthwise_conv2d", official)
