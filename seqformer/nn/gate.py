"""Channel gates: every channel scaled by a number in (0, 1) that looks at the means over time. Layout (B, T, C)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.mask import lengths_of, masked_mean, zero_padding

Gate = Literal["none", "se", "eca"]


class SqueezeExcite(nn.Module):
    """x * gate, the gate a two-layer net of the mean over real frames: x (B, T, C), mask (B, T) -> (B, T, C).

    C -> max(1, C // ratio), Swish, -> C, sigmoid (Hu et al., arXiv 1709.01507, with the Swish of ContextNet, arXiv
    2005.03191, section 2.2). ``window``, in frames of x, takes the mean around each frame in place of the whole item,
    the odd frame of an even window on the right (the context ablation of ContextNet, table 3).
    Raises ValueError for a window below 1.
    """

    def __init__(self, dim: int, ratio: int = 8, window: int | None = None):
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window {window} must be at least 1 frame")
        self.window = window
        self.squeeze = nn.Linear(dim, max(1, dim // ratio))
        self.excite = nn.Linear(max(1, dim // ratio), dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = _item_mean(x, mask) if self.window is None else window_mean(x, mask, self.window)
        return x * self.excite(F.silu(self.squeeze(mean))).sigmoid().to(x.dtype)


class EfficientChannelAttention(nn.Module):
    """x * gate, the gate a convolution over the channels of the mean: x (B, T, C), mask (B, T) -> (B, T, C).

    Mean over real frames, one filter of ``kernel`` neighbouring channels without bias, sigmoid (ECA-Net, Wang et al.,
    CVPR 2020, arXiv 1910.03151). 'Same' padding, the odd channel of an even kernel on the right. The paper derives
    the kernel from the width; here it is an argument. weight (1, 1, kernel), as in Conv1d.
    """

    def __init__(self, dim: int, kernel: int = 5):
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.conv = nn.Conv1d(1, 1, kernel, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean_B1C = F.pad(_item_mean(x, mask), ((self.kernel - 1) // 2, self.kernel // 2))
        return x * self.conv(mean_B1C).sigmoid().to(x.dtype)


def make_gate(kind: Gate, dim: int, ratio: int = 8, window: int | None = None) -> nn.Module | None:
    """The gate of a kind: a module (x, mask) -> x, or None. ``ratio`` and ``window`` are squeeze-excite's."""
    if kind == "se":
        return SqueezeExcite(dim, ratio, window)
    return EfficientChannelAttention(dim) if kind == "eca" else None


def window_mean(x: Tensor, mask: Tensor, window: int) -> Tensor:
    """Mean over the real frames among the ``window`` around each: x (B, T, C), mask (B, T) -> (B, T, C).

    Float32 or finer; 0 where a window holds no real frame, which is in padding only.
    """
    # A difference of running sums costs the same for every window; its rounding is that of float32 over the item.
    x = zero_padding(_precise(x), mask)
    sums = F.pad(x.cumsum(dim=1), (0, 0, 1, 0))
    centre = torch.arange(x.shape[1], device=x.device)
    begin, end = (centre - (window - 1) // 2).clamp(min=0), (centre + window // 2 + 1).clamp(max=x.shape[1])
    count = (end.minimum(lengths_of(mask)[:, None]) - begin).clamp(min=1)
    return (sums.index_select(1, end) - sums.index_select(1, begin)) / count[..., None].to(x.dtype)


def _item_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, T, C), mask (B, T) -> (B, 1, C), float32 or finer: bfloat16 cannot even count to 1000."""
    return masked_mean(_precise(x), mask).unsqueeze(1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
