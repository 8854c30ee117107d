"""Losses of classes and of numbers: what is not scored adds nothing and gets no gradient, NaN included.

Each is the weighted mean over what is scored in the batch, float32, and 0 with a gradient of 0 where nothing is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ValueKind = Literal["mae", "mse", "huber", "mcrmse", "bce"]
LEAST = 1e-8  # below it a sum of weights is none


def shares(scored: Tensor, weight: Tensor | None) -> Tensor:
    """scored (B, ...) bool, weight (B,), (B, T), ... or None -> weights in the shape of scored, 0 where not scored.

    Raises ValueError when the weights have axes that what is scored has not, or of another size.
    """
    if weight is None:
        return scored.float()
    own, known = tuple(weight.shape), tuple(scored.shape)
    if len(own) > len(known) or any(size not in (1, full) for size, full in zip(own, known, strict=False)):
        raise ValueError(f"weights of shape {own} for a loss of shape {known}: expected one per item, frame or value")
    weight = weight.float().reshape(own + (1,) * (len(known) - len(own)))
    return weight.expand(known).masked_fill(~scored, 0)


def weighted_mean(error: Tensor, share: Tensor) -> Tensor:
    """Mean of errors by their shares, both (...)."""
    return (error * share).sum() / share.sum().clamp(min=LEAST)


def column_rmse(square: Tensor, share: Tensor) -> Tensor:
    """Mean over columns of the root of the mean square, both (..., V); a column without a share is left out."""
    square, share = square.flatten(0, -2), share.flatten(0, -2)
    total = share.sum(dim=0)
    mean = (square * share).sum(dim=0) / total.clamp(min=LEAST)
    # The root has an infinite slope at 0, where clamp's is 0.
    root = mean.clamp(min=1e-12).sqrt().masked_fill(mean <= 0, 0)
    return root.sum() / (total > 0).sum().clamp(min=1)


def class_loss(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    focal: float = 0.0,
    kl: bool = False,
) -> Tensor:
    """Cross-entropy: logits (..., V), mask (...), targets (...) class numbers, -1 not scored, or shares (..., V), NaN
    not scored.

    ``focal`` weighs a class by (1 - p)^focal (Lin et al. 2017). ``kl`` subtracts the entropy of the targets, which
    makes it the Kullback-Leibler divergence KL(targets || softmax(logits)); its gradient is the same.
    """
    logits = logits.float()
    goal, scored = scored_classes(targets, mask)
    if not focal and not kl:
        flat = goal.flatten(0, -2) if goal.is_floating_point() else goal.flatten()
        error = F.cross_entropy(logits.flatten(0, -2), flat, reduction="none", label_smoothing=smoothing)
        error = error.reshape(scored.shape)
    else:
        goal = goal if goal.is_floating_point() else F.one_hot(goal, logits.shape[-1]).float()
        goal, log_p = goal * (1 - smoothing) + smoothing / logits.shape[-1], logits.log_softmax(dim=-1)
        error = -(goal * (1 - log_p.exp()).clamp(min=LEAST) ** focal * log_p).sum(dim=-1)
        if kl:
            error = error - torch.special.entr(goal).sum(dim=-1)
    return weighted_mean(error.masked_fill(~scored, 0), shares(scored, weight))


def scored_classes(targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Targets as class_loss takes them -> the same, 0 where not scored, and what is scored (...)."""
    if targets.is_floating_point():
        scored = mask & targets.isfinite().all(dim=-1)
        return targets.float().masked_fill(~scored[..., None], 0), scored
    scored = mask & (targets >= 0)
    return targets.masked_fill(~scored, 0), scored


def as_values(targets: Tensor) -> Tensor:
    """Targets as float32, NaN where not scored: so are whole numbers below 0."""
    return targets.float() if targets.is_floating_point() else targets.float().masked_fill(targets < 0, float("nan"))


@dataclass(frozen=True)
class ValueLoss:
    """Loss of numbers (..., V), NaN in the targets not scored.

    ``mae``, ``mse``, ``huber`` (quadratic up to ``delta``), ``mcrmse``: the mean over columns of the root mean squared
    error, ``bce``: of logits against 0 to 1, with ``smoothing`` towards 1/2 and ``focal`` as in class_loss. ``clip``
    [low, high] clips targets; ``beyond`` lets an output pass the bound freely where the target is at or beyond it too,
    for a prediction will be clipped as well. With ``confidence`` there are twice as many outputs: the second half
    learns the error of the first (detached), by a Huber loss of that weight. Raises ValueError on options that do
    not go together.
    """

    kind: ValueKind
    delta: float = 1.0
    clip: tuple[float, float] | None = None
    beyond: bool = False
    confidence: float = 0.0
    smoothing: float = 0.0
    focal: float = 0.0

    def __post_init__(self):
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip is {list(self.clip)}; expected a low and a higher bound")
        if self.beyond and (self.clip is None or self.kind == "bce"):
            raise ValueError("beyond needs clip: [low, high], and a loss other than bce")
        if (self.smoothing or self.focal) and self.kind != "bce":
            raise ValueError(f"smoothing and focal are of classes or bce, not of {self.kind}")
        if self.delta <= 0 or self.confidence < 0:
            raise ValueError(f"delta is {self.delta}, confidence {self.confidence}; expected above 0, and 0 or more")

    @property
    def columns(self) -> int:
        """Outputs that each value takes."""
        return 2 if self.confidence else 1

    def __call__(self, outputs: Tensor, targets: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """outputs (..., V) or, with ``confidence``, (..., 2V), targets (..., V), mask (...) -> the loss."""
        outputs = outputs.float()
        values = self.values(outputs)
        targets = as_values(targets).reshape(values.shape)
        scored = mask[..., None] & targets.isfinite()
        error = self.error(values, targets.masked_fill(~scored, 0)).masked_fill(~scored, 0)
        share = shares(scored, weight)
        loss = column_rmse(error, share) if self.kind == "mcrmse" else weighted_mean(error, share)
        if self.confidence:
            guess = outputs[..., values.shape[-1] :].masked_fill(~scored, 0)
            missed = F.huber_loss(guess, error.detach(), reduction="none", delta=self.delta)
            loss = loss + self.confidence * weighted_mean(missed, share)
        return loss

    def values(self, outputs: Tensor) -> Tensor:
        """The outputs that are values, not confidence in them."""
        return outputs[..., : outputs.shape[-1] // self.columns]

    def answers(self, outputs: Tensor) -> Tensor:
        """Values as predictions: with ``bce`` probabilities."""
        values = self.values(outputs.float())
        return values.sigmoid() if self.kind == "bce" else values

    def error(self, values: Tensor, targets: Tensor) -> Tensor:
        """The error of each value, of the same shape; ``mcrmse``'s is the square."""
        if self.clip is not None:
            targets = targets.clamp(*self.clip)
        if self.kind == "bce":
            return self._binary(values, targets)
        gap = values - targets
        if self.beyond:
            low, high = self.clip
            free = ((values > high) & (targets >= high)) | ((values < low) & (targets <= low))
            gap = gap.masked_fill(free, 0)
        if self.kind == "mae":
            return gap.abs()
        if self.kind == "huber":
            return F.huber_loss(gap, torch.zeros_like(gap), reduction="none", delta=self.delta)
        return gap.square()

    def _binary(self, logits: Tensor, targets: Tensor) -> Tensor:
        goal = targets * (1 - self.smoothing) + self.smoothing / 2
        if not self.focal:
            return F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        p, least = logits.sigmoid(), LEAST
        yes = goal * (1 - p).clamp(min=least) ** self.focal * F.logsigmoid(logits)
        return -yes - (1 - goal) * p.clamp(min=least) ** self.focal * F.logsigmoid(-logits)
