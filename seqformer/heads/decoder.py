"""Attention decoder head (Chan et al. 2016, with the Transformer decoder of Vaswani et al. 2017): unit by unit."""

from typing import Literal

import torch
from torch import Tensor, nn

from seqformer.nn.decoder import DecoderLayer, Past
from seqformer.nn.dropout import Dropout
from seqformer.nn.losses import class_loss
from seqformer.nn.mask import zero_padding
from seqformer.nn.norm import LayerNorm
from seqformer.nn.positions import sinusoid_table
from seqformer.nn.recurrent import reverse
from seqformer.registry import register

START = 0  # the tokenizer's unknown piece, never a target


@register("head", "decoder")
class Decoder(nn.Module):
    """x (B, T, D) -> keys and values of the frames for all layers (B, T, 2 layers D), which units are decoded from.

    Targets (B, U) are unit numbers from 1, padded with -1, at most ``max_units`` of them. Logits (..., vocab) are of
    the units 1 to vocab - 1, and last of the end, so that unit n is column n - 1. ``token_mask`` replaces that share
    of the units read in training by a unit of its own; ``smoothing`` is label smoothing. ``reverse`` learns, and
    predicts, texts from their end. Raises ValueError when heads do not divide dim.
    """

    answers = False  # what forward gives is no logits: its search makes them

    def __init__(
        self,
        dim: int,
        vocab: int,
        target: str = "text",
        layers: int = 2,
        heads: int = 4,
        ff_factor: float = 4,
        positions: Literal["sinusoid", "learned"] = "sinusoid",
        max_units: int = 256,
        dropout: float = 0.1,
        token_mask: float = 0.0,
        smoothing: float = 0.0,
        reverse: bool = False,
    ):
        super().__init__()
        self.target, self.vocab, self.max_units = target, vocab, max_units
        self.token_mask, self.smoothing, self.reverse = token_mask, smoothing, reverse
        self.frames = nn.Linear(dim, 2 * layers * dim)
        self.units = nn.Embedding(vocab + 1, dim)  # the last for masked ones: the end is never read
        table = sinusoid_table(max_units + 1, dim, torch.zeros(()))[: max_units + 1].flip(0)  # distances 0, 1, ...
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn_like(table))
        else:
            self.register_buffer("positions", table, persistent=False)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, ff_factor, dropout) for _ in range(layers))
        self.dropout, self.norm = Dropout(dropout), LayerNorm(dim)
        self.linear = nn.Linear(dim, vocab)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.frames(zero_padding(x, mask))

    def logits(
        self, units: Tensor, memory: Tensor, mask: Tensor, past: list[Past | None] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """units (B, U) read, from START on, memory from ``forward`` -> logits of the unit after each (B, U, vocab).

        With ``past``, what a call for the units before returned, units are (B, 1), the next.
        """
        first = past[0][0].shape[2] if past else 0
        y = self.dropout(self.units(units) + self.positions[first : first + units.shape[1]])
        # An item without frames reads its own zeros: a softmax over nothing would be NaN.
        reads = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]
        parts, found = memory.chunk(2 * len(self.layers), dim=-1), []
        for number, layer in enumerate(self.layers):
            y, kept = layer(y, parts[2 * number], parts[2 * number + 1], reads, past[number] if past else None)
            found.append(kept)
        return self.linear(self.norm(y)), found

    def loss(self, x: Tensor, mask: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean cross-entropy over units and the end of each, float32; items without frames add nothing.

        Raises ValueError on more than ``max_units`` units.
        """
        if targets.shape[1] > self.max_units:
            raise ValueError(f"a target of {targets.shape[1]} units; max_units is {self.max_units}")
        if self.reverse:
            targets = reverse(targets[..., None], targets >= 0)[..., 0]
        read = torch.cat([targets.new_full((len(targets), 1), START), targets.clamp(min=0)], dim=1)
        if self.training and self.token_mask:
            hidden = torch.rand(read.shape, device=read.device) < self.token_mask
            hidden[:, 0] = False
            read = read.masked_fill(hidden, self.vocab)
        place = torch.arange(read.shape[1], device=read.device)
        ends = place == (targets >= 0).sum(dim=1, keepdim=True)
        goal = nn.functional.pad(targets, (0, 1), value=-1).masked_fill(ends, self.vocab) - 1
        scored = (goal >= 0) & mask.any(dim=1, keepdim=True)
        return class_loss(self.logits(read, self(x, mask), mask)[0], goal, scored, weight, self.smoothing)

    @torch.no_grad()
    def predict(self, x: Tensor, mask: Tensor) -> list[list[int]]:
        """Greedy decoding: the best unit after each, until all items of the batch have ended."""
        memory, past, found = self(x, mask), None, []
        ended = ~mask.any(dim=1)
        unit = torch.full_like(ended, START, dtype=torch.int64)
        for _ in range(self.max_units):
            logits, past = self.logits(unit[:, None], memory, mask, past)
            best = logits[:, 0].argmax(dim=-1) + 1
            ended = ended | (best == self.vocab)
            unit = best.masked_fill(ended, START)
            found.append(unit)
            if bool(ended.all()):
                break
        texts = [[unit for unit in text if unit] for text in torch.stack(found, dim=1).tolist()]
        return [text[::-1] for text in texts] if self.reverse else texts
