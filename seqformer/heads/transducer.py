"""Transducer head (Graves 2012, arXiv 1211.3711): units as they are heard, each given all units before it."""

from typing import Literal

import torch
from torch import Tensor, nn

from seqformer.decode.transducer import BLANK, GreedyReader, Score, beam_search, greedy
from seqformer.nn.mask import lengths_of, zero_padding
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
    ``max_symbols`` units for a frame. A CTC loss beside it is a second head. Raises ValueError on numbers below 1.
    """

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
    ):
        super().__init__()
        for name, value in {"layers": layers, "context": context, "max_symbols": max_symbols}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        self.target, self.max_symbols = target, max_symbols
        if predictor == "lstm":
            self.predictor = LSTMPredictor(vocab, predictor_dim, layers)
        else:
            self.predictor = StatelessPredictor(vocab, predictor_dim, context)
        self.dropout = nn.Dropout(dropout)
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
        """Weighted mean of -log p(target) over items with frames, float32; 0 with a gradient of 0 if there are none."""
        frames, units = lengths_of(mask), (targets >= 0).sum(dim=1)
        targets = targets.clamp(min=0)
        after, _ = self.after(nn.functional.pad(targets, (1, 0), value=BLANK))
        numbers = after.shape[0] * after.shape[1] * (self.linear.in_features + self.linear.out_features)
        blank, label = lattice_entries(
            lambda part, after: self.logits(part[:, :, None], after[:, None]),
            self(x, mask),
            after,
            nn.functional.pad(targets, (0, 1)),
            chunk=max(1, NUMBERS_AT_ONCE // numbers),
        )
        nll = transducer_loss(blank, label, frames, units)
        weight = torch.ones_like(nll) if weight is None else weight.float()
        weight = weight.masked_fill(frames == 0, 0)
        return (nll * weight).sum() / weight.sum().clamp(min=1e-8)

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
        items = zip(self(x, mask), lengths_of(mask).tolist(), strict=True)
        return [
            beam_search(self.logits, self.after, frames[:length], beam, self.max_symbols, score)
            for frames, length in items
        ]
