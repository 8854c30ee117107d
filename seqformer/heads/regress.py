"""Numbers for a whole sequence."""

import numpy as np
from torch import Tensor, nn

from seqformer.nn.dropout import LateDropout
from seqformer.nn.feedforward import Activation, hidden_layer
from seqformer.nn.losses import ValueKind, ValueLoss
from seqformer.nn.pool import Pool, Pooling
from seqformer.registry import register


@register("head", "regress")
class Regress(nn.Module):
    """x (B, T, D), mask (B, T) -> values (B, vocab): Pool, hidden layer, dropout, one linear layer.

    Targets (B,) or (B, vocab) are numbers, NaN not scored; ``loss``, ``delta``, ``clip``, ``beyond`` and
    ``confidence`` are those of ValueLoss (with ``confidence``, (B, 2 vocab)), the rest is as in ``classify``. With
    ``bce`` targets are 0 to 1: how good a sequence is, learned from the score that an earlier model had on it.
    ``weights`` names a column of weights per item or value.
    """

    def __init__(
        self,
        dim: int,
        vocab: int = 1,
        target: str = "value",
        loss: ValueKind = "mae",
        delta: float = 1.0,
        clip: tuple[float, float] | None = None,
        beyond: bool = False,
        confidence: float = 0.0,
        pooling: Pooling = "mean",
        hidden: int | None = None,
        activation: Activation = "none",
        dropout: float = 0.0,
        late_dropout: float | None = None,
        late_from: int | None = None,
        weights: str | None = None,
    ):
        super().__init__()
        self.target, self.weights = target, weights
        self.values = ValueLoss(loss, delta, clip, beyond, confidence)
        self.pool = Pool(dim, pooling)
        self.hidden = hidden_layer(dim, hidden, activation)
        self.dropout = LateDropout(dropout, late_dropout, late_from)
        self.linear = nn.Linear(hidden or dim, vocab * self.values.columns)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.dropout(self.hidden(self.pool(x, mask))))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over scored values, float32; 0 when none is scored. ``weight`` is (B,) or (B, vocab)."""
        return self.values(self(x, mask), targets, mask.new_ones(len(x)), weight)

    def predict(self, x: Tensor, mask: Tensor) -> list[np.ndarray]:
        """Values (vocab,) of each item, float32; of ``bce``, probabilities."""
        return list(self.values.answers(self(x, mask).detach()).cpu().numpy())
