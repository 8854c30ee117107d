"""The codes of masked frames: what a model guesses in self-supervised pretraining."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.losses import shares, weighted_mean
from seqformer.nn.mask import lengths_of
from seqformer.registry import register


@register("head", "codes")
class Codes(nn.Module):
    """x (B, T, D) -> logits (B, T, vocab) of the codes that a frontend such as ``best_rq`` made.

    Targets (B, T) are codes, -1 where nothing was masked, which is not scored. Source: Chiu et al. 2022 (BEST-RQ).
    """

    given_targets = True  # of predict, where there are any: a metric compares both

    def __init__(self, dim: int, vocab: int, target: str = "codes"):
        super().__init__()
        self.target = target
        self.linear = nn.Linear(dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x)

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean of the cross-entropy over masked frames, float32; 0 when there is none.

        Raises ValueError when targets and frames differ in number: the frontend's stride must be the backbone's.
        """
        if targets.shape != x.shape[:2]:
            raise ValueError(
                f"{targets.shape[1]} codes for {x.shape[1]} frames: set the frontend's stride to the backbone's"
            )
        scored = mask & (targets >= 0)
        # Thousands of logits a frame: only those that count.
        error = F.cross_entropy(self.linear(x[scored]).float(), targets[scored], reduction="none")
        return weighted_mean(error, shares(scored, weight)[scored])

    def predict(self, x: Tensor, mask: Tensor, codes: Tensor | None = None) -> list[np.ndarray]:
        """For each item the likeliest code of each frame (T,), or (T, 2) with the ``codes`` (B, T) beside them."""
        found = self.linear(x).argmax(dim=-1)
        found = found if codes is None else torch.stack([found, codes], dim=-1)
        return [item[:length] for item, length in zip(found.cpu().numpy(), lengths_of(mask).tolist(), strict=True)]
