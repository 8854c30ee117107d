"""Recurrent layers over real frames."""

import torch
from torch import Tensor, nn

from seqformer.nn.mask import lengths_of, zero_padding


def reverse(x: Tensor, mask: Tensor) -> Tensor:
    """The real frames of each item in reverse order, padding where it was: x (B, T, D), mask (B, T) -> (B, T, D)."""
    index = torch.arange(x.shape[1], device=x.device)
    order = torch.where(mask, lengths_of(mask)[:, None] - 1 - index, index)
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


class GRU(nn.Module):
    """Bidirectional GRU layers (Cho et al. 2014): x (B, T, D), mask (B, T) -> (B, T, D), padding 0.

    The later direction reads each item from its own last real frame: no packing, and lengths stay on the device. The
    two directions share the width; of an odd one the earlier has the larger half. torch.export unrolls a GRU: exported,
    it takes the number of frames that it was shown.
    """

    def __init__(self, dim: int, layers: int = 1):
        super().__init__()
        self.forwards = nn.ModuleList(nn.GRU(dim, dim - dim // 2, batch_first=True) for _ in range(layers))
        self.backwards = nn.ModuleList(nn.GRU(dim, dim // 2, batch_first=True) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for earlier, later in zip(self.forwards, self.backwards, strict=True):
            x = zero_padding(x, mask).to(earlier.weight_hh_l0.dtype)  # CPU autocast leaves the weights float32
            behind, ahead = earlier(x)[0], reverse(later(reverse(x, mask))[0], mask)
            x = torch.cat([behind, ahead], dim=-1)
        return zero_padding(x, mask)
