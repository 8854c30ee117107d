"""Learned scale, and a BatchNorm that counts real frames only."""

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, is_available, is_initialized
from torch.distributed.nn.functional import all_reduce

from seqformer.nn.mask import zero_padding


class LearnedScale(nn.Module):
    """x * scale + bias per channel: what Squeezeformer puts before a branch in place of a LayerNorm (section 3.1.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


class MaskedBatchNorm(nn.Module):
    """BatchNorm over the real frames of a batch: x (B, T, C), mask (B, T) -> (B, T, C).

    torch's BatchNorm1d counts padding, so the loss of an item depends on its neighbours' lengths; this one does not,
    in training either. Statistics are float32 and, where processes train together, over all their frames. A batch
    without real frames leaves the running statistics alone. Equal to BatchNorm1d where nothing is padded.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.015):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean, var = self._batch_statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul((self.bias - mean * scale).to(x.dtype), x, scale.to(x.dtype))

    def _batch_statistics(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # Two mat-vec products; centred on the running mean first, so that the difference of squares keeps its digits.
        centred = zero_padding(x.float() - self.running_mean, mask).flatten(0, 1)
        sums = torch.cat([centred.sum(dim=0), centred.square().sum(dim=0), mask.sum().float()[None]])
        if is_available() and is_initialized():
            sums = all_reduce(sums, ReduceOp.SUM)
        count = sums[-1].clamp(min=1)
        offset, square = (sums[:-1] / count).chunk(2)
        mean, var = self.running_mean + offset, (square - offset.square()).clamp(min=0)
        with torch.no_grad():
            pace = self.momentum * (sums[-1] > 0)
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.detach(), pace)
            self.running_var.lerp_(unbiased.detach(), pace)
        return mean, var
