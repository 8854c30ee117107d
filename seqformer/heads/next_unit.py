"""The unit behind each frame: what a language model is trained on."""

import numpy as np
from torch import Tensor, nn

from seqformer.nn.dropout import Dropout
from seqformer.nn.losses import class_loss
from seqformer.nn.mask import lengths_of
from seqformer.registry import register


@register("head", "next_unit")
class NextUnit(nn.Module):
    """x (B, T, D) of a causal backbone of stride 1 -> logits (B, T, vocab) of the unit behind each frame.

    Dataset ``texts`` makes the frames, a begin and the units of a text, and the targets (B, T), the units and an end,
    -1 not scored. ``dropout`` is of what enters the linear layer, ``smoothing`` of the labels, in training alone.
    """

    given_targets = True  # of predict, where there are any: how likely they are is the answer

    def __init__(self, dim: int, vocab: int, target: str = "text", dropout: float = 0.0, smoothing: float = 0.0):
        super().__init__()
        self.target, self.smoothing = target, smoothing
        self.dropout, self.linear = Dropout(dropout), nn.Linear(dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(self.dropout(x))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over all scored frames of the batch of -log p(target), float32; 0 when none is scored.

        Raises ValueError when targets and frames differ in number: the backbone's stride must be 1.
        """
        if targets.shape[1] != x.shape[1]:
            raise ValueError(f"{targets.shape[1]} target frames for {x.shape[1]} frames: use a backbone of stride 1")
        return class_loss(self(x, mask), targets, mask, weight, self.smoothing if self.training else 0.0)

    def predict(self, x: Tensor, mask: Tensor, targets: Tensor | None = None) -> list[np.ndarray]:
        """For each item log p of its targets (frames,) or, without, of every unit (frames, vocab), float32."""
        log_probs = self(x, mask).detach().float().log_softmax(dim=-1)
        if targets is not None:
            log_probs = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return [item[:length] for item, length in zip(log_probs.cpu().numpy(), lengths_of(mask).tolist(), strict=True)]
