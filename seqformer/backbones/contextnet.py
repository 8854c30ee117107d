"""ContextNet (Han et al., Interspeech 2020, arXiv 2005.03191): separable convolutions, gated by squeeze-and-excite.

23 blocks with channels 11 x 256, 11 x 512, 640, times the width (alpha); the frame rate is halved in blocks 3, 7, 14:

| preset | width | dim | parameters | of these the gates | whole transducer | in the paper's table |
|---|---|---|---|---|---|---|
| contextnet_s | 0.5 | 320 | 5,765,208 | 255,992 | 10,973,912 | 10.8 M |
| contextnet_m | 1 | 640 | 22,681,296 | 1,013,744 | 28,094,800 | 31.4 M |
| contextnet_l | 2 | 1280 | 89,967,552 | 4,034,528 | 95,790,656 | 112.7 M |

For 80 features, measured here and asserted in our tests. The whole is the encoder with an embedding of 1024 units, one
LSTM of 640 and a joint network of 640: S fits the paper, M and L do not. The recipe is underspecified (size of the
gate, what P is, biases); here the gate has ratio 8.

Where we differ: convolutions are padded on both sides (``causal`` for the left only), P takes every second frame of a
strided block, convolutions before a BatchNorm have no second bias, and each block has a dropout on its branch, of
which the paper says nothing (``dropout`` 0 for none). Padding is handled as in ``squeezeformer.py``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.backbones.intermediates import Kept, forward_intermediates
from seqformer.backbones.presets import preset
from seqformer.nn.conv import DepthwiseConv
from seqformer.nn.dropout import Dropout
from seqformer.nn.gate import Gate, make_gate
from seqformer.nn.mask import stride_mask, strided, zero_padding
from seqformer.nn.norm import MaskedBatchNorm
from seqformer.registry import register

CHANNELS = (256,) * 11 + (512,) * 11 + (640,)


class SeparableConv(nn.Module):
    """Depthwise, pointwise, BatchNorm, Swish: x (B, T, C_in), mask (B, T) -> (B, ceil(T / stride), C), mask."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int, causal: bool):
        super().__init__()
        self.stride = stride
        self.depthwise = DepthwiseConv(in_dim, kernel, stride, causal)
        self.pointwise = nn.Linear(in_dim, dim, bias=False)  # the BatchNorm has one
        self.norm = MaskedBatchNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pointwise(self.depthwise(x, mask))
        mask = mask if self.stride == 1 else stride_mask(mask, self.stride)
        return F.silu(self.norm(x, mask)), mask


class Shortcut(nn.Module):
    """Every ``stride``-th frame, pointwise, BatchNorm: x (B, T, C_in), mask (B, T') -> (B, T', C).

    The mask is that of the output: T' = ceil(T / stride).
    """

    def __init__(self, in_dim: int, dim: int, stride: int):
        super().__init__()
        self.stride = stride
        self.pointwise = nn.Linear(in_dim, dim, bias=False)
        self.norm = MaskedBatchNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.stride > 1:
            # Picked by index: export cannot see that a slice with a step is as long as a convolution with that stride.
            kept = torch.arange(strided(x.shape[1], self.stride), device=x.device) * self.stride
            x = x.index_select(1, kept)
        return self.norm(self.pointwise(x), mask)


class Block(nn.Module):
    """Swish(gate(f(x)) + P(x)): x (B, T, C_in), mask (B, T) -> (B, ceil(T / stride), C), mask (section 2.2).

    f is ``convs`` separable convolutions, the last one strided, and P a ``Shortcut``, or nothing.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        convs: int,
        kernel: int,
        stride: int,
        gate: nn.Module | None,
        shortcut: bool,
        causal: bool,
        dropout: float,
    ):
        super().__init__()
        self.convs = nn.ModuleList(
            SeparableConv(in_dim if index == 0 else dim, dim, kernel, stride if index == convs - 1 else 1, causal)
            for index in range(convs)
        )
        self.gate = gate
        self.shortcut = Shortcut(in_dim, dim, stride) if shortcut else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, y_mask = x, mask
        for conv in self.convs:
            y, y_mask = conv(y, y_mask)
        if self.gate is not None:
            y = self.gate(y, y_mask)
        y = self.dropout(y)
        return F.silu(y if self.shortcut is None else y + self.shortcut(x, y_mask)), y_mask


@register("backbone", "contextnet")
class ContextNet(nn.Module):
    """x (B, T, in_dim), mask (B, T) -> (B, ceil(T / stride), dim), mask.

    One block per entry of ``channels``, each times ``width`` and rounded to a multiple of 8. The first and the last
    block have one convolution and no shortcut, the others ``convs`` and one. The blocks ``reduce_at`` halve the frame
    rate. ``window``, in frames at each block's own rate, bounds what a squeeze-excite gate sees. ``causal`` pads
    convolutions on the left only; a gate still sees later frames, so only with ``gate`` none are results causal too.
    Raises ValueError when there is no such block, and for a window without squeeze-excite.
    """

    def __init__(
        self,
        in_dim: int,
        width: float = 1.0,
        kernel: int = 5,
        convs: int = 5,
        channels: tuple[int, ...] = CHANNELS,
        reduce_at: tuple[int, ...] = (3, 7, 14),
        gate: Gate = "se",
        se_ratio: int = 8,
        window: int | None = None,
        causal: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        if not set(reduce_at) <= set(range(len(channels))) or len(set(reduce_at)) < len(reduce_at):
            raise ValueError(f"reduce_at {reduce_at} must be different blocks of 0 to {len(channels) - 1}")
        if window is not None and gate != "se":
            raise ValueError(f"window {window} needs gate 'se', found {gate!r}")
        self.stride: int = 2 ** len(reduce_at)
        self.blocks, self.dims = nn.ModuleList(), []
        for index, base in enumerate(channels):
            dim, middle = rounded(base * width), 0 < index < len(channels) - 1
            stride = 2 if index in reduce_at else 1
            scale = make_gate(gate, dim, se_ratio, window)
            self.blocks.append(
                Block(in_dim, dim, convs if middle else 1, kernel, stride, scale, middle, causal, dropout)
            )
            in_dim = dim
            self.dims.append(dim)
        self.dim: int = in_dim

    def forward(
        self, x: Tensor, mask: Tensor, bias: Tensor | None = None, keep: Kept | None = None
    ) -> tuple[Tensor, Tensor]:
        """``bias`` is for attention, of which there is none here: accepted as every backbone does, and not used."""
        for index, block in enumerate(self.blocks):
            x, mask = block(x, mask)
            if keep is not None and index in keep:
                keep[index] = zero_padding(x, mask), mask
        return zero_padding(x, mask), mask

    forward_intermediates = forward_intermediates


def rounded(channels: float) -> int:
    """The nearest multiple of 8, halves up, at least 8: what the fast kernels want."""
    return max(8, int(channels / 8 + 0.5) * 8)


@preset(ContextNet)
def contextnet_s(**changes) -> ContextNet:
    return ContextNet(**(dict(width=0.5) | changes))


@preset(ContextNet)
def contextnet_m(**changes) -> ContextNet:
    return ContextNet(**(dict(width=1.0) | changes))


@preset(ContextNet)
def contextnet_l(**changes) -> ContextNet:
    return ContextNet(**(dict(width=2.0) | changes))
