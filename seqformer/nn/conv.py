"""Depthwise convolution over time and the convolution module built on it. Layout (B, T, C) throughout."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer import kernels
from seqformer.nn.dropout import Dropout
from seqformer.nn.feedforward import silu
from seqformer.nn.gate import Gate, make_gate
from seqformer.nn.linear import joined
from seqformer.nn.mask import stride_mask, zero_padding
from seqformer.nn.norm import LearnedScale, MaskedBatchNorm

ConvActivation = Literal["swish", "glu"]


class DepthwiseConv(nn.Module):
    """One filter per channel over time: x (B, T, C), mask (B, T) -> (B, ceil(T / stride), C).

    Padded frames are zeroed first. 'Same' padding, the odd frame of an even kernel on the right; ``causal`` pads on
    the left only, ``left`` says how many frames. weight (C, 1, kernel), as in Conv1d. ``shift`` and ``scale`` (C,), of
    a norm that follows, make the output shift + scale * output; ``activate`` ends with Swish.
    """

    def __init__(
        self,
        dim: int,
        kernel: int,
        stride: int = 1,
        causal: bool = False,
        left: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.left = left if left is not None else kernel - 1 if causal else (kernel - 1) // 2
        bound = kernel**-0.5
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        activate: bool = False,
    ) -> Tensor:
        weight_C11K, bias = self.weight.unsqueeze(2), self.bias
        if scale is not None:
            weight_C11K, bias = (
                weight_C11K * scale[:, None, None, None],
                shift if bias is None else shift + bias * scale,
            )
        if self.stride == 1 and 1 < self.kernel < 64 and kernels.active(x):
            return kernels.depthwise_conv(x, mask, weight_C11K.squeeze(2), bias, self.left, activate)
        x = F.pad(zero_padding(x, mask), (0, 0, self.left, self.kernel - 1 - self.left))
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            from seqformer.nn.depthwise import depthwise

            y = depthwise(x, weight_C11K.to(x.dtype), None if bias is None else bias.to(x.dtype), self.stride)
            return silu(y) if activate else y
        # A (B, T, C) tensor *is* a channels-last image of height 1: that layout has the fast kernels, with no copy.
        x_BC1T = x.transpose(1, 2).unsqueeze(2)
        y_BC1T = F.conv2d(x_BC1T, weight_C11K, bias, stride=(1, self.stride), groups=x.shape[2])
        y = y_BC1T.squeeze(2).transpose(1, 2)
        return silu(y) if activate else y


class ConvModule(nn.Module):
    """Pointwise, activation, depthwise, norm, Swish, gate, pointwise, dropout: x (B, T, D), mask (B, T) -> (B, T, D).

    ``swish`` keeps the inner width at 2D (Squeezeformer, section 3.1.2); ``glu`` halves it to D (Conformer).
    ``gate``: squeeze-excite or efficient channel attention over the item, or none. ``scale`` is a learned scale before
    it. Out of training a BatchNorm is part of the convolution's taps.
    """

    def __init__(
        self,
        dim: int,
        kernel: int = 31,
        activation: ConvActivation = "swish",
        dropout: float = 0.0,
        causal: bool = False,
        gate: Gate = "none",
        bias: bool = True,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        width = conv_width(dim, activation)
        self.expand = nn.Linear(dim, 2 * dim, bias=bias)
        self.activation = activation
        self.depthwise = DepthwiseConv(width, kernel, causal=causal, bias=bias)
        self.norm = norm or MaskedBatchNorm(width)
        self.gate = make_gate(gate, width)
        self.project = nn.Linear(width, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, scale: LearnedScale | None = None) -> Tensor:
        x = joined(x, (self.expand,), scale)
        x = silu(x) if self.activation == "swish" else F.glu(x)
        if isinstance(self.norm, MaskedBatchNorm) and not self.training:
            x = self.depthwise(x, mask, *self.norm.shift_and_scale(x, mask), activate=True)
        else:
            x = silu(self.norm(self.depthwise(x, mask), mask))
        if self.gate is not None:
            x = self.gate(x, mask)
        return self.dropout(self.project(x))


def conv_width(dim: int, activation: ConvActivation) -> int:
    """Channels of a ConvModule's depthwise convolution."""
    return 2 * dim if activation == "swish" else dim


class TimeReduction(nn.Module):
    """Halve the frame rate: x (B, T, D), mask (B, T) -> (B, ceil(T / 2), D), mask.

    Depthwise convolution of kernel 5, stride 2, then pointwise, no activation. The paper's text says kernel 3; its
    code, and so its weights, have 5. Frame j sees 2j - ``left`` to 2j - ``left`` + 4: ours is centred, NeMo's looks
    back (3), the official one ahead (0). ``drop_odd`` gives the official zeros in place of the last frame of an odd T.
    """

    def __init__(self, dim: int, left: int = 2, drop_odd: bool = False):
        super().__init__()
        self.depthwise = DepthwiseConv(dim, kernel=5, stride=2, left=left)
        self.pointwise = nn.Linear(dim, dim)
        self.drop_odd = drop_odd

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, half = self.pointwise(self.depthwise(x, mask)), stride_mask(mask, 2)
        if self.drop_odd:
            y = y * (torch.arange(y.shape[1], device=y.device) < x.shape[1] // 2)[:, None]
        return y, half


class TimeUpsample(nn.Module):
    """Each frame becomes ``stride`` frames: transposed convolution of that kernel, Swish, dropout (Zeineldeen 2022).

    x (B, T', D), frames T -> (B, T, D), cut to T.
    """

    def __init__(self, dim: int, stride: int, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, stride, stride=stride)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        # Picked by index for export's sake, as in TimeRecovery.
        return self.dropout(F.silu(y.index_select(1, torch.arange(frames, device=x.device))))


class TimeRecovery(nn.Module):
    """Back to the full rate: repeat each frame twice, project, add the frames kept before the reduction."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        # Projected before repeating: the same numbers for half the work. Picked by index, because an exported model
        # remembers of a repetition cut to length whether it was cut at all, and then takes odd or even T only.
        return self.linear(x).index_select(1, torch.arange(kept.shape[1], device=x.device) // 2) + kept
