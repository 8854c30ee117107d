"""One class, or several at once, for a whole sequence."""

from typing import Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.dropout import LateDropout
from seqformer.nn.feedforward import Activation, hidden_layer
from seqformer.nn.losses import ValueLoss, class_loss
from seqformer.nn.pool import Pool, Pooling
from seqformer.registry import register


@register("head", "classify")
class Classify(nn.Module):
    """x (B, T, D), mask (B, T) -> logits (B, vocab): Pool, hidden layer, dropout, one linear layer.

    Targets (B,) are class numbers, -1 not scored, or (B, vocab) shares of the classes, NaN not scored. ``loss``:
    ``ce`` is cross-entropy, ``kl`` the divergence from the shares; ``bce`` takes each class by itself, so that an item
    may have several (0 or 1 for each, or a share). ``smoothing`` is label smoothing, ``focal`` the power of (1 - p)
    that weighs ``ce`` and ``bce``. ``hidden`` is the width of a linear layer with an ``activation``; ``late_dropout``
    replaces ``dropout`` from epoch ``late_from``. ``weights`` names a column of weights per item.
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "label",
        loss: Literal["ce", "bce", "kl"] = "ce",
        pooling: Pooling = "mean",
        hidden: int | None = None,
        activation: Activation = "none",
        dropout: float = 0.0,
        late_dropout: float | None = None,
        late_from: int | None = None,
        smoothing: float = 0.0,
        focal: float = 0.0,
        weights: str | None = None,
    ):
        super().__init__()
        if loss == "kl" and focal:
            raise ValueError(f"focal is {focal} with loss: kl; expected ce or bce")
        self.target, self.weights, self.kind = target, weights, loss
        self.smoothing, self.focal = smoothing, focal
        self.binary = ValueLoss("bce", smoothing=smoothing, focal=focal) if loss == "bce" else None
        self.pool = Pool(dim, pooling)
        self.hidden = hidden_layer(dim, hidden, activation)
        self.dropout = LateDropout(dropout, late_dropout, late_from)
        self.linear = nn.Linear(hidden or dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.dropout(self.hidden(self.pool(x, mask))))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over scored items (of ``bce``, scored classes of items), float32; 0 when none is scored."""
        logits = self(x, mask)
        every = mask.new_ones(len(x))
        if self.binary is None:
            return class_loss(logits, targets, every, weight, self.smoothing, self.focal, self.kind == "kl")
        if targets.dim() == 1 and not targets.is_floating_point() and logits.shape[1] > 1:
            one_hot = F.one_hot(targets.clamp(min=0), logits.shape[1])
            targets = one_hot.masked_fill(targets[:, None] < 0, -1)
        return self.binary(logits, targets, every, weight)

    def predict(self, x: Tensor, mask: Tensor) -> list[np.ndarray]:
        """Class probabilities (vocab,) of each item, float32: of ``bce``, each class by itself."""
        logits = self(x, mask).detach().float()
        return list((logits.softmax(dim=-1) if self.binary is None else logits.sigmoid()).cpu().numpy())
