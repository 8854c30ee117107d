"""CTC head (Graves et al. 2006): one linear layer, the CTC loss, greedy decoding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.decode.greedy import collapse
from seqformer.decode.spans import GreedyReader
from seqformer.nn.mask import lengths_of
from seqformer.registry import register

BLANK = 0


@register("head", "ctc")
class CTC(nn.Module):
    """x (B, T, D) -> logits (B, T, vocab). Unit 0 is the blank (and the tokenizer's unknown piece, as published).

    Targets (B, U) are unit numbers, padded with -1. An item whose target does not fit into its frames (one frame per
    unit, one more between equal neighbours) has no alignment: it adds nothing to the loss, and is counted.
    """

    def __init__(self, dim: int, vocab: int, target: str = "text"):
        super().__init__()
        self.target = target
        self.linear = nn.Linear(dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x)

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over feasible items of -log p(target), float32; 0 with a gradient of 0 when there is none."""
        frames, units = lengths_of(mask), (targets >= 0).sum(dim=1)
        log_prob_TBV = self.linear(x).float().log_softmax(dim=-1).transpose(0, 1)
        nll = F.ctc_loss(
            log_prob_TBV, targets.clamp(min=0), frames, units, blank=BLANK, reduction="none", zero_infinity=True
        )
        weight = torch.ones_like(nll) if weight is None else weight.float()
        weight = weight.masked_fill(self.infeasible(mask, targets), 0)
        return (nll * weight).sum() / weight.sum().clamp(min=1e-8)

    def infeasible(self, mask: Tensor, targets: Tensor) -> Tensor:
        """True (B,) for items without any alignment."""
        repeats = ((targets[:, 1:] == targets[:, :-1]) & (targets[:, 1:] >= 0)).sum(dim=1)
        return (targets >= 0).sum(dim=1) + repeats > lengths_of(mask)

    def log_probs(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """log p(unit) in the frames of each item (T, vocab), float32: what a search over texts takes."""
        log_probs = self.linear(x).float().log_softmax(dim=-1)
        return [item[keep] for item, keep in zip(log_probs, mask, strict=True)]

    def predict(self, x: Tensor, mask: Tensor) -> list[list[int]]:
        """Greedy decoding: the best unit of each frame, repeats merged, blanks dropped."""
        return collapse(self.linear(x).argmax(dim=-1), mask, BLANK)

    def reader(self) -> GreedyReader:
        """Greedy decoding of one recording, pushed to it piece by piece as ``forward`` gives it."""
        return GreedyReader(BLANK)
