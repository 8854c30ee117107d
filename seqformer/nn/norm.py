"""Norms and the learned scale. Each is called as ``norm(x, mask)``, although only BatchNorm needs the mask."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, is_available, is_initialized

from seqformer import kernels
from seqformer.nn.mask import zero_padding
from seqformer.nn.paths import fast_on_cpu

NormKind = Literal["layer", "rms", "batch"]


class LearnedScale(nn.Module):
    """x * scale + bias per channel: what Squeezeformer puts before a branch in place of a LayerNorm (section 3.1.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x * self.scale + self.bias


class NoNorm(nn.Module):
    """Frames as they are, where a block has no norm or scale."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class LayerNorm(nn.LayerNorm):
    """Over the channels of a frame (Ba et al. 2016)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class RMSNorm(nn.RMSNorm):
    """Over the channels of a frame, without centring and without a bias (Zhang and Sennrich 2019)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # Autocast does not know this one: left to itself it mixes a bfloat16 input with a float32 weight, slowly.
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class MaskedBatchNorm(nn.Module):
    """BatchNorm over the real frames of a batch: x (B, T, ..., C), mask (B, T) -> (B, T, ..., C).

    torch's BatchNorm1d counts padding, so the loss of an item depends on its neighbours' lengths; this one does not,
    in training either. Statistics are float32 or finer and, where processes train together, over all their frames. A
    batch without real frames leaves the running statistics alone. Equal to BatchNorm1d where nothing is padded.
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.015):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.training and fast_on_cpu(x) and x.dtype == self.weight.dtype:
            y, mean, var, count = BatchNorm.apply(x, mask, self.weight, self.bias, self.eps)
            self._follow(mean, var, count)
            return y
        shift, scale = self.shift_and_scale(x, mask)
        return torch.addcmul(shift, x, scale)

    def shift_and_scale(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x is shift + x * scale, (C,) each."""
        mean, var = self._batch_statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (self.bias - mean * scale).to(x.dtype), scale.to(x.dtype)

    def _batch_statistics(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, count = _mean(x, mask)
        # Centred on the mean itself: a difference of squares loses the digits of a small deviation beside a large
        # mean. Detached, because the variance does not change with the point that is its minimum.
        var = _variance(x - mean.detach(), mask, count)
        self._follow(mean, var, count)
        return mean, var

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch of ``count`` points."""
        pace = self.momentum * (count > 0)
        unbiased = var * count.clamp(min=1) / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), pace)


class BatchNorm(torch.autograd.Function):
    """MaskedBatchNorm in training with the gradient written out: a third of the passes over x that autograd makes.

    x (B, T, ..., C), mask (B, T), weight (C,), bias (C,) -> y as x, mean (C,), variance (C,), points counted ().
    """

    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, count = _mean(x, mask)
        centred = x - mean
        var = _variance(centred, mask, count)
        inverse = torch.rsqrt(var + eps)
        ctx.save_for_backward(centred, mask, weight, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return torch.addcmul(bias, centred, weight * inverse), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        centred, mask, weight, inverse, count = ctx.saved_tensors
        to_bias, to_scale = _sum(grad), _sum(grad * centred)
        shift, slope = _over_processes(torch.stack([to_bias, to_scale * inverse.square()]))
        # What a point does to the output through the mean and the variance of all; padding does nothing to them.
        scale = weight * inverse
        through = zero_padding(torch.addcmul(-shift * scale / count, centred, -slope * scale / count), mask)
        return torch.addcmul(through, grad, scale), None, to_scale * inverse, to_bias, None


def make_norm(kind: NormKind, dim: int, eps: float = 1e-5, momentum: float = 0.015) -> nn.Module:
    """The norm of a kind over ``dim`` channels; ``momentum`` is that of BatchNorm's running statistics."""
    if kind == "batch":
        return MaskedBatchNorm(dim, eps, momentum)
    return LayerNorm(dim, eps) if kind == "layer" else RMSNorm(dim, eps)


def norm_sum(norm: nn.Module, x: Tensor, y: Tensor, factor: float, mask: Tensor) -> Tensor:
    """norm(x + factor y)."""
    if isinstance(norm, LayerNorm) and kernels.active(x):
        return kernels.add_layer_norm(x, y, norm.weight, norm.bias, norm.eps, factor)[0]
    return norm(x + (y if factor == 1 else factor * y), mask)


class SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over processes; its gradient is the sum of theirs. torch's own function for it is deprecated."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        total = part.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        all_reduce(total)
        return total


def _over_processes(sums: Tensor) -> Tensor:
    """Sum over the processes that train together, differentiable."""
    return SumOverProcesses.apply(sums) if is_available() and is_initialized() else sums


def _sum(x: Tensor) -> Tensor:
    """x (..., C) -> (C,)."""
    return x.sum(dim=tuple(range(x.dim() - 1)))


def _mean(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) of the real points of x (B, T, ..., C) and how many there are, of all processes; 0 of none."""
    points = mask.sum().to(x.dtype) * math.prod(x.shape[2:-1])  # of a grid each one of a frame counts
    sums = _over_processes(torch.cat([_sum(zero_padding(x, mask)), points[None]]))
    return sums[:-1] / sums[-1].clamp(min=1), sums[-1]


def _variance(centred: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Variance (C,) of the ``count`` real points of x less their mean, of all processes."""
    return _over_processes(_sum(zero_padding(centred, mask).square())) / count.clamp(min=1)
