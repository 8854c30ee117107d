"""Dropout, with cheap draws on a CPU, and dropout that begins late."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.paths import fast_on_cpu

STEPS = 2**16  # a draw has 16 bits: a share of dropout is a multiple of 2^-16


class Dropout(nn.Dropout):
    """Zero each number with probability ``p`` in training and scale the others by 1 / (1 - p): any shape.

    torch draws one number for each element on a CPU, a tenth of a training step; here one 64-bit word is four draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with numbers dropped, where ``training``: any shape. Draws come from torch's generator."""
    if not training or not p or not fast_on_cpu(x) or p == 1:
        return F.dropout(x, p, training)
    return DropBits.apply(x, min(round(p * STEPS), STEPS - 1))


class DropBits(torch.autograd.Function):
    """Drop each number with probability ``least`` / 2^16."""

    @staticmethod
    def forward(ctx, x: Tensor, least: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        ctx.keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= least - STEPS // 2
        ctx.scale = STEPS / (STEPS - least)
        return _kept(x, ctx.keep, ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _kept(grad, ctx.keep, ctx.scale), None


def _kept(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    # Not x * keep: the product of a float and a bool is several times as slow.
    return keep.to(x.dtype).mul_(x).mul_(scale)


class LateDropout(nn.Module):
    """Dropout of share ``p``, from epoch ``late_from`` (0 is the first) of share ``late``, where that is given.

    The training loop calls ``begin_epoch`` at the start of each epoch, after a resume too. Raises ValueError on a
    share outside 0 to 1, or on one of the two without the other.
    """

    def __init__(self, p: float = 0.0, late: float | None = None, late_from: int | None = None):
        super().__init__()
        if (late is None) != (late_from is None):
            raise ValueError(f"late_dropout is {late}, late_from {late_from}; expected both or none")
        if not 0 <= p <= 1 or not 0 <= (late or 0) <= 1:
            raise ValueError(f"dropout is {p}, late_dropout {late}; expected 0 to 1")
        self.p, self.early, self.late, self.late_from = p, p, late, late_from

    def begin_epoch(self, epoch: int) -> None:
        """Take the share of an epoch."""
        self.p = self.early if self.late is None or epoch < self.late_from else self.late

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
