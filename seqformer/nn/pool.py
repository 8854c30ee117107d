"""Pooling of frames into one vector per item."""

from typing import Literal

import torch
from torch import Tensor, nn

from seqformer.nn.mask import lengths_of, masked_mean, zero_padding

Pooling = Literal["mean", "max", "gem", "attention", "first"]
HIDDEN = -1e30  # finite: a row of it alone keeps its gradients finite


class Pool(nn.Module):
    """x (B, T, D), mask (B, T) -> (B, D) over real frames; 0 for an item without any.

    ``mean`` and ``max`` are of each channel; ``gem`` is the generalised mean (mean of x^p)^(1/p) of what is above 1e-6,
    with one learned p from 3, never below 1 (Radenović et al. 2018); ``attention`` is a mean with a learned weight per
    frame; ``first`` the first frame.
    """

    def __init__(self, dim: int, kind: Pooling = "mean"):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.attention = nn.Linear(dim, 1)
        elif kind == "gem":
            self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "mean":
            return masked_mean(x, mask)
        x = zero_padding(x, mask)
        if self.kind == "first":
            return x[:, 0]
        empty = ~mask.any(dim=1)[:, None]
        if self.kind == "attention":
            logit = self.attention(x).float().masked_fill(~mask[..., None], HIDDEN)
            return (logit.softmax(dim=1).to(x.dtype) * x).sum(dim=1)
        if self.kind == "max":
            return x.masked_fill(~mask[..., None], HIDDEN).amax(dim=1).masked_fill(empty, 0)
        # By logarithms: x^p itself leaves float32 at p = 20 and x = 100.
        p, log = self.p.float().clamp(min=1), x.float().clamp(min=1e-6).log()
        total = (p * log).masked_fill(~mask[..., None], HIDDEN).logsumexp(dim=1)
        mean = total - lengths_of(mask).clamp(min=1).float().log()[:, None]
        return (mean / p).exp().to(x.dtype).masked_fill(empty, 0)
