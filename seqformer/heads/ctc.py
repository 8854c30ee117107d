"""CTC head (Graves et al. 2006): one linear layer, the CTC loss, greedy decoding."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.decode.greedy import best_units, collapse
from seqformer.decode.prefix_beam import prefix_beam
from seqformer.decode.spans import GreedyReader
from seqformer.nn.mask import lengths_of
from seqformer.nn.mwer import mwer
from seqformer.nn.smbr import Bigram, expected_gain
from seqformer.registry import register

BLANK = 0


@register("head", "ctc")
class CTC(nn.Module):
    """x (B, T, D) -> logits (B, T, vocab). Unit 0 is the blank (and the tokenizer's unknown piece, as published).

    Targets (B, U) are unit numbers, padded with -1. An item whose target does not fit into its frames (one frame per
    unit, one more between equal neighbours) has no alignment: it adds nothing to the loss, and is counted.

    Two criteria train a model further that can recognise already, with a share of ``likelihood`` of the usual loss:
    ``mwer`` the word errors expected over the best texts of a search with a ``beam``, ``smbr`` the wrong frames
    expected over all paths of all texts, by the alignments of the target and a bigram of units counted on the training
    rows, where log p(unit) counts ``scale`` times. Out of training the loss is the usual one. Raises ValueError on a
    beam that has nothing to compare, and on a share or a scale that is none.
    """

    spellings: list[str] | None = None  # what each unit adds to a text; without them a unit counts as a word

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "text",
        criterion: Literal["likelihood", "mwer", "smbr"] = "likelihood",
        likelihood: float = 0.1,
        beam: int = 4,
        scale: float = 1.0,
    ):
        super().__init__()
        if not 0 <= likelihood <= 1 or beam < 2 or scale <= 0:
            raise ValueError(
                f"likelihood {likelihood}, beam {beam}, scale {scale}: expected 0 to 1, 2 or more, above 0"
            )
        self.target, self.criterion, self.likelihood, self.beam, self.scale = target, criterion, likelihood, beam, scale
        self.linear = nn.Linear(dim, vocab)
        self.bigram = Bigram(vocab) if criterion == "smbr" else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x)

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over feasible items of -log p(target), float32; 0 with a gradient of 0 when there is none.

        In training it is mixed with the errors expected in an item, where a criterion asks for them.
        """
        logits = self.linear(x).float()
        log_probs = logits.log_softmax(dim=-1)
        loss = nll_of(log_probs, mask, targets)
        if self.training and self.criterion != "likelihood":
            errors = self._wrong_words if self.criterion == "mwer" else self._wrong_frames
            loss = (1 - self.likelihood) * errors(log_probs, mask, targets) + self.likelihood * loss
        weight = torch.ones_like(loss) if weight is None else weight.float()
        infeasible = self.infeasible(mask, targets)
        weight = weight.masked_fill(infeasible, 0)
        return (loss.masked_fill(infeasible, 0) * weight).sum() / weight.sum().clamp(min=1e-8)

    def _wrong_words(self, log_probs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Expected word errors of each item (B,), less their mean over the texts that a search finds."""
        found = prefix_beam(log_probs.detach().cpu().numpy(), lengths_of(mask).tolist(), self.beam)
        texts = [[one.units for one in item] for item in found]
        return mwer(lambda units: nll_of(log_probs, mask, units), texts, targets, self.spellings)

    def _wrong_frames(self, log_probs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Expected number of frames of each item (B,) in which a path emits another unit than the target's paths."""
        graph, label = self.bigram.ctc_graph()
        right = aligned(log_probs, mask, targets)
        scores = self.scale * log_probs[..., label]
        return lengths_of(mask) - expected_gain(scores, right[..., label], mask, graph)

    @property
    def fit(self):
        """``fit(targets)`` with those of a fold's training rows; there is none but for the criterion smbr."""
        return self.bigram.fit

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
        return collapse(best_units(self.linear(x)), mask, BLANK)

    def reader(self) -> GreedyReader:
        """Greedy decoding of one recording, pushed to it piece by piece as ``forward`` gives it."""
        return GreedyReader(BLANK)


def nll_of(log_probs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of each item (B,): log_probs (B, T, V), targets (B, U); 0 of those without any alignment."""
    frames, units = lengths_of(mask), (targets >= 0).sum(dim=1)
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        targets.clamp(min=0),
        frames,
        units,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )


def aligned(log_probs: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Probability of each unit in each frame (B, T, V) on the alignments of the target, no gradient.

    It is what the gradient of the loss by the logits takes off the softmax.
    """
    with torch.enable_grad():
        logits = log_probs.detach().requires_grad_()
        nll = nll_of(logits.log_softmax(dim=-1), mask, targets)
        (slope,) = torch.autograd.grad(nll.sum(), logits)
    return log_probs.detach().exp() - slope
