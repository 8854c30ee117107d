"""Stochastic depth (Huang et al. 2016): in training a residual branch is left out for some items of a batch."""

import torch
from torch import Tensor


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """branch (B, ...) with each item zeroed with probability ``rate``, the others scaled to keep the mean."""
    if not training or rate == 0:
        return branch
    keep = torch.rand(branch.shape[0], device=branch.device) >= rate
    return branch * (keep / (1 - rate)).to(branch.dtype).reshape(-1, *(1,) * (branch.dim() - 1))
