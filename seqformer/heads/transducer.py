"""Transducer head (Graves 2012, arXiv 1211.3711): units as they are heard, each given all units before it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqformer.decode.prefix_beam import Guide
from seqformer.decode.prefix_beam import Hypothesis as Found
from seqformer.decode.transducer import BLANK, GreedyReader, Score, beam_search, greedy
from seqformer.decode.unit_score import UnitScore, guided
from seqformer.nn.dropout import Dropout
from seqformer.nn.mask import lengths_of, zero_padding
from seqformer.nn.mwer import mwer
from seqformer.nn.predictor import LSTMPredictor, StatelessPredictor
from seqformer.nn.transducer_loss import lattice_entries, transducer_loss
from seqformer.registry import register

NUMBERS_AT_ONCE = 2**22  # of logits and what they are made of, in training


@register("head", "transducer")
class Transducer(nn.Module):
    """x (B, T, D) -> the frames' half of the joint network (B, T, joint), which texts are decoded from.

    Unit 0 is the blank, as of CTC. Targets (B, U) are unit numbers, padded with -1; any number of units fits into one
    frame. The units said so far pass an ``lstm`` of ``layers`` layers, or ``stateless`` the last ``context`` alone, of
    width ``predictor_dim``, with ``dropout`` behind; logits are linear(tanh(frames + units)). ``predict`` gives at most
    ``max_symbols`` units for a frame. ``monotonic``: a frame gives a blank or one unit, never both (Tripathi et al.
    2019); where a unit follows itself, this tells a second one from the first one's frame. A text longer than its
    frames then has no alignment, adds nothing to the loss and is counted. A CTC loss beside it is a second head.

    ``criterion`` mwer trains a model further that can recognise already: the word errors expected over the best texts
    of a search with a ``beam``, and a share of ``likelihood`` of the usual loss, which it is out of training. Raises
    ValueError on numbers below 1, on a beam that has nothing to compare, and on a share that is none.
    """

    spellings: list[str] | None = None  # what each unit adds to a text; without them a unit counts as a word
    answers = False  # what forward gives is no logits: its search makes them

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "text",
        predictor: Literal["lstm", "stateless"] = "lstm",
        predictor_dim: int = 320,
        layers: int = 1,
        context: int = 2,
        joint: int = 320,
        dropout: float = 0.0,
        max_symbols: int = 5,
        monotonic: bool = False,
        criterion: Literal["likelihood", "mwer"] = "likelihood",
        likelihood: float = 0.1,
        beam: int = 4,
    ):
        super().__init__()
        if not 0 <= likelihood <= 1 or beam < 2:
            raise ValueError(f"likelihood is {likelihood}, beam {beam}; expected 0 to 1, and 2 or more")
        for name, value in {"layers": layers, "context": context, "max_symbols": max_symbols}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        self.target, self.monotonic, self.max_symbols = target, monotonic, 1 if monotonic else max_symbols
        self.criterion, self.likelihood, self.beam = criterion, likelihood, beam
        if predictor == "lstm":
            self.predictor = LSTMPredictor(vocab, predictor_dim, layers)
        else:
            self.predictor = StatelessPredictor(vocab, predictor_dim, context)
        self.dropout = Dropout(dropout)
        self.frames, self.units = nn.Linear(dim, joint), nn.Linear(predictor_dim, joint)
        self.linear = nn.Linear(joint, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.frames(zero_padding(x, mask))

    def after(self, units: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The units' half of the joint network: units (B, U), from BLANK on -> (B, U, joint) after each, and the state.

        With ``state``, what a call for the units before returned, units are the next.
        """
        y, state = self.predictor(units, state)
        return self.units(self.dropout(y)), state

    def logits(self, frames: Tensor, units: Tensor) -> Tensor:
        """The two halves (..., joint) -> (..., vocab)."""
        return self.linear(torch.tanh(frames + units))

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean of -log p(target) over items with frames, float32; 0 with a gradient of 0 without any.

        In training it is mixed with the expected word errors of an item, where the criterion asks for them.
        """
        encoded = self(x, mask)
        loss = self.nll(encoded, mask, targets)
        if self.training and self.criterion == "mwer":
            self.eval()  # the texts are those the model would say: no dropout in the search
            texts = [[units for units, _ in found] for found in self.search(x, mask, self.beam)]
            self.train()
            errors = mwer(lambda units: self.nll(encoded, mask, units), texts, targets, self.spellings)
            loss = (1 - self.likelihood) * errors + self.likelihood * loss
        weight = torch.ones_like(loss) if weight is None else weight.float()
        weight = weight.masked_fill(self.infeasible(mask, targets) | ~mask.any(dim=1), 0)
        return (loss * weight).sum() / weight.sum().clamp(min=1e-8)

    def infeasible(self, mask: Tensor, targets: Tensor) -> Tensor:
        """True (B,) for items without any alignment."""
        return ((targets >= 0).sum(dim=1) > lengths_of(mask)) & self.monotonic

    def nll(self, encoded: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of each item (B,) of what ``forward`` gave; 0 of one without frames."""
        frames, units = lengths_of(mask), (targets >= 0).sum(dim=1)
        targets = targets.clamp(min=0)
        after, _ = self.after(nn.functional.pad(targets, (1, 0), value=BLANK))
        numbers = after.shape[0] * after.shape[1] * (self.linear.in_features + self.linear.out_features)
        blank, label = lattice_entries(
            lambda part, after: self.logits(part[:, :, None], after[:, None]),
            encoded,
            after,
            nn.functional.pad(targets, (0, 1)),
            chunk=max(1, NUMBERS_AT_ONCE // numbers),
        )
        return transducer_loss(blank, label, frames, units, self.monotonic)

    @torch.no_grad()
    def predict(self, x: Tensor, mask: Tensor) -> list[list[int]]:
        """Greedy decoding, all items at once."""
        return greedy(self.logits, self.after, self(x, mask), lengths_of(mask), self.max_symbols)

    def reader(self) -> GreedyReader:
        """Greedy decoding of one recording, pushed to it piece by piece as ``forward`` gives it."""
        return GreedyReader(self.logits, self.after, self.max_symbols)

    @torch.no_grad()
    def search(
        self, x: Tensor, mask: Tensor, beam: int, score: Score | None = None
    ) -> list[list[tuple[list[int], float]]]:
        """The best texts of each item, at most ``beam``, best first, with their log-probabilities; see beam_search."""
        items = [frames[:length] for frames, length in zip(self(x, mask), lengths_of(mask).tolist(), strict=True)]
        found = beam_search(self.logits, self.after, items, beam, self.max_symbols, score, self.monotonic)
        return [[(list(one.units), one.total) for one in texts] for texts in found]

    @torch.no_grad()
    def search_frames(self, frames: Sequence[np.ndarray], beam: int, guide: Guide | None = None) -> list[list[Found]]:
        """``search`` in what ``forward`` made of each item (T, joint), with what a guide adds to texts."""
        items = [torch.from_numpy(item).to(self.linear.weight.device) for item in frames]
        score = UnitScore(guide) if guide else None
        found = beam_search(self.logits, self.after, items, beam, self.max_symbols, score, self.monotonic)
        return [guided(((one.units, one.log_p) for one in texts), score) for texts in found]
