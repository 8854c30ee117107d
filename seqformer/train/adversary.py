"""Adversarial weight perturbation (Wu et al. 2020, algorithm 1): the gradient is that of nearby, worse weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from seqformer.config import Awp


@contextmanager
def perturbed(model: nn.Module, awp: Awp) -> Iterator[None]:
    """Move each matrix w up its gradient g, by size |w| g / |g| (by size g / |g| where not ``relative``), and back.

    Matrices are all weights of more than one axis: norms, biases and scales stay. Inside, the caller drops the gradient
    that chose the direction and makes the one to use. Where g is a whole step's (all batches accumulated, all processes
    reduced) this is the perturbation of one large batch; a loss scale cancels, and a gradient that is not finite makes
    the next one not finite too. Afterwards weights and buffers (running statistics, which belong to the clean weights)
    are what they were, bit for bit.
    """
    moved = [weight for weight in model.parameters() if weight.dim() > 1 and weight.grad is not None]
    kept = [tensor for tensor in (*moved, *model.buffers())]
    before = [tensor.detach().clone() for tensor in kept]
    try:
        with torch.no_grad():
            for weight in moved:
                length = awp.size * (weight.norm() if awp.relative else 1.0)
                weight.add_(weight.grad * (length / weight.grad.norm().clamp(min=1e-12)))
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
