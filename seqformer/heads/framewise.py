"""A class or a value for every frame."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.mask import lengths_of
from seqformer.registry import register


@register("head", "framewise")
class Framewise(nn.Module):
    """x (B, T, D) -> logits (B, T, vocab), for a backbone of stride 1.

    ``classes``: targets (B, T) are class numbers, -1 not scored, cross-entropy. ``values``: targets (B, T, vocab) are
    numbers, NaN not scored, mean absolute error (``mae``) or squared error (``mse``). ``focal`` weighs the
    cross-entropy of a class by (1 - p)^focal (Lin et al. 2017); ``hidden`` puts a linear layer of that width, without
    activation, before the last (the auxiliary heads of the Switchboard hybrid).
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "labels",
        loss: Literal["classes", "mae", "mse"] = "classes",
        focal: float = 0.0,
        hidden: int | None = None,
    ):
        super().__init__()
        self.target, self.kind, self.focal = target, loss, focal
        self.hidden = nn.Identity() if hidden is None else nn.Linear(dim, hidden)
        self.linear = nn.Linear(hidden or dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.hidden(x))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over all scored frames of the batch, float32; 0 when none is scored.

        Raises ValueError when targets and frames differ in number: the backbone's stride must be 1.
        """
        if targets.shape[1] != x.shape[1]:
            raise ValueError(f"{targets.shape[1]} target frames for {x.shape[1]} frames: use a backbone of stride 1")
        logits = self(x, mask).float()
        if self.kind == "classes":
            scored = mask & (targets >= 0)
            error = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")
            if self.focal:
                error = error * (1 - (-error).exp()) ** self.focal
        else:
            targets = targets.reshape(logits.shape).float()
            scored = mask[..., None] & targets.isfinite()
            gap = logits - targets.masked_fill(~scored, 0)
            error = gap.abs() if self.kind == "mae" else gap.square()
        item = scored.new_ones(len(x), dtype=torch.float32) if weight is None else weight.float()
        share = scored * item.reshape(-1, *[1] * (scored.dim() - 1))
        return (error.masked_fill(~scored, 0) * share).sum() / share.sum().clamp(min=1e-8)

    def predict(self, x: Tensor, mask: Tensor) -> list[np.ndarray]:
        """For each item, (frames, vocab) class probabilities or values, float32."""
        logits = self(x, mask).detach().float()
        scores = (logits.softmax(dim=-1) if self.kind == "classes" else logits).cpu().numpy()
        return [item[:length] for item, length in zip(scores, lengths_of(mask).tolist(), strict=True)]
