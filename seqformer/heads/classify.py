"""One class for a whole sequence."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.mask import masked_mean
from seqformer.registry import register


@register("head", "classify")
class Classify(nn.Module):
    """x (B, T, D), mask (B, T) -> logits (B, vocab): pooling over real frames, dropout, one linear layer.

    Targets (B,) are class numbers; -1 is not scored. ``smoothing`` is label smoothing. ``pooling``: the masked mean,
    or ``attention``, a learned weight per frame.
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "label",
        pooling: Literal["mean", "attention"] = "mean",
        dropout: float = 0.0,
        smoothing: float = 0.0,
    ):
        super().__init__()
        self.target, self.smoothing = target, smoothing
        self.attention = nn.Linear(dim, 1) if pooling == "attention" else None
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.dropout(self._pool(x, mask)))

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.attention is None:
            return masked_mean(x, mask)
        logit = self.attention(x).float().masked_fill(~mask[..., None], -1e30)
        return (logit.softmax(dim=1).to(x.dtype) * x.masked_fill(~mask[..., None], 0)).sum(dim=1)

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean cross-entropy over scored items, float32; 0 when none is scored."""
        logits = self(x, mask).float()
        nll = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none", label_smoothing=self.smoothing)
        weight = (targets >= 0) * (torch.ones_like(nll) if weight is None else weight.float())
        return (nll * weight).sum() / weight.sum().clamp(min=1e-8)

    def predict(self, x: Tensor, mask: Tensor) -> list[np.ndarray]:
        """Class probabilities (vocab,) of each item, float32."""
        return list(self(x, mask).detach().float().softmax(dim=-1).cpu().numpy())
