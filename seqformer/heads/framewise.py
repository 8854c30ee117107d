"""A class or a value for every frame."""

from typing import Literal

import numpy as np
from torch import Tensor, nn

from seqformer.nn.dropout import Dropout
from seqformer.nn.feedforward import Activation, hidden_layer
from seqformer.nn.losses import ValueLoss, class_loss
from seqformer.nn.mask import lengths_of
from seqformer.nn.recurrent import GRU
from seqformer.nn.smbr import Bigram, wrong_frames
from seqformer.registry import register


@register("head", "framewise")
class Framewise(nn.Module):
    """x (B, T, D) -> logits (B, T, vocab), for a backbone of stride 1.

    ``classes``: targets (B, T) are class numbers, -1 not scored, or (B, T, vocab) shares of the classes, NaN not
    scored; cross-entropy with label ``smoothing`` and ``focal``. Any other ``loss``: targets (B, T, vocab) are
    numbers, NaN not scored, and the options those of ValueLoss; with ``confidence`` logits are (B, T, 2 vocab).
    Frames pass ``gru`` bidirectional layers, a ``hidden`` linear layer of that width with an ``activation`` (without
    one: the auxiliary heads of the Switchboard hybrid), and the last linear layer; ``dropout`` is of what enters the
    GRU, or the last layer where there is no GRU. ``weights`` names a column of weights per item, frame or value.

    ``criterion`` smbr trains classes as a sequence: the share of wrong frames that is expected over all paths through a
    bigram of the classes, counted on the training rows, and a share of ``likelihood`` of the cross-entropy. Frames
    score log p(class) less the log of the class's share in training, times ``scale``. It is for training a model
    further that knows the classes; out of training the loss is the cross-entropy.
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "labels",
        loss: Literal["classes", "mae", "mse", "huber", "mcrmse", "bce"] = "classes",
        focal: float = 0.0,
        smoothing: float = 0.0,
        delta: float = 1.0,
        clip: tuple[float, float] | None = None,
        beyond: bool = False,
        confidence: float = 0.0,
        gru: int = 0,
        hidden: int | None = None,
        activation: Activation = "none",
        dropout: float = 0.0,
        weights: str | None = None,
        criterion: Literal["likelihood", "smbr"] = "likelihood",
        likelihood: float = 0.1,
        scale: float = 1.0,
    ):
        super().__init__()
        if criterion == "smbr" and (loss != "classes" or not 0 <= likelihood <= 1 or scale <= 0):
            raise ValueError(f"smbr is of loss classes, not {loss}, likelihood 0 to 1, not {likelihood}, scale above 0")
        if loss == "classes" and (clip is not None or beyond or confidence):
            raise ValueError("clip, beyond and confidence are of a loss of values, not of classes")
        self.target, self.weights, self.kind = target, weights, loss
        self.focal, self.smoothing = focal, smoothing
        self.values = None
        if loss != "classes":
            self.values = ValueLoss(loss, delta, clip, beyond, confidence, smoothing, focal)
        self.gru = GRU(dim, gru) if gru else None
        self.hidden = hidden_layer(dim, hidden, activation)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(hidden or dim, vocab * (self.values.columns if self.values else 1))
        self.likelihood, self.scale = likelihood, scale
        self.bigram = Bigram(vocab) if criterion == "smbr" else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.gru is None:
            return self.linear(self.dropout(self.hidden(x)))
        return self.linear(self.hidden(self.gru(self.dropout(x), mask)))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over all scored frames of the batch, float32; 0 when none is scored.

        ``weight`` is (B,), (B, T) or, of values, (B, T, vocab). Raises ValueError when targets and frames differ in
        number: the backbone's stride must be 1.
        """
        if not targets.shape[1]:  # rows that are validated by another column have none
            return self.linear.weight.float().sum() * 0
        if targets.shape[1] != x.shape[1]:
            raise ValueError(f"{targets.shape[1]} target frames for {x.shape[1]} frames: use a backbone of stride 1")
        logits = self(x, mask)
        if self.values is not None:
            return self.values(logits, targets, mask, weight)
        loss = class_loss(logits, targets, mask, weight, self.smoothing, self.focal)
        if self.bigram is None or not self.training:
            return loss
        log_p = logits.float().log_softmax(dim=-1) - self.bigram.shares
        wrong = wrong_frames(self.scale * log_p, targets, mask, self.bigram.graph(), weight)
        return (1 - self.likelihood) * wrong + self.likelihood * loss

    @property
    def fit(self):
        """``fit(targets)`` with those of a fold's training rows; there is none but for the criterion smbr."""
        return self.bigram.fit

    def log_probs(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """log p(class) in the frames of each item (T, vocab), float32: what a search over texts takes."""
        log_probs = self(x, mask).float().log_softmax(dim=-1)
        return [item[keep] for item, keep in zip(log_probs, mask, strict=True)]

    def predict(self, x: Tensor, mask: Tensor) -> list[np.ndarray]:
        """For each item, (frames, vocab) class probabilities or values (of ``bce``, probabilities), float32."""
        logits = self(x, mask).detach().float()
        scores = logits.softmax(dim=-1) if self.values is None else self.values.answers(logits)
        return [item[:length] for item, length in zip(scores.cpu().numpy(), lengths_of(mask).tolist(), strict=True)]
