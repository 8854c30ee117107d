"""Tokens: one or several tracks of whole numbers per frame, such as bases and the loop types that they are in."""

from typing import Literal

import torch
from torch import Tensor, nn

from seqformer.errors import InputError
from seqformer.frontends.features import Features, field_of
from seqformer.nn.dropout import Dropout
from seqformer.nn.mask import lengths_of, zero_padding
from seqformer.registry import register


@register("frontend", "tokens")
class Tokens(nn.Module):
    """inputs[field] (B, T) or (B, T, tracks), mask (B, T) -> Features(x (B, T, dim), mask), by embedding.

    Track i holds whole numbers 0 ... vocab[i] - 1. ``mix``: embeddings of one ``width`` are summed, or of a width each
    concatenated (one number is the width of every track). ``values`` numbers per frame, inputs["values"]
    (B, T, values), NaN read as 0, go through a linear layer of their own, whose width comes last. ``start_end`` adds
    a learned vector to the first and another to the last real frame: what START and END tokens tell, without frames
    that no target has (Ribonanza's winner adds frames). Dropout is of the output.

    A number out of range raises InputError on a CPU, naming track and number. On a GPU to look would be to wait for
    it, and in an exported model it cannot be said: there its frame becomes NaN, which no loss or score hides.
    """

    def __init__(
        self,
        vocab: list[int],
        width: int | list[int],
        field: str = "x",
        mix: Literal["sum", "concat"] = "sum",
        values: int = 0,
        start_end: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        parts = len(vocab) + (values > 0)
        widths = [width] * parts if isinstance(width, int) else list(width)
        if not vocab or len(widths) != parts:
            raise ValueError(f"width {width} must be one number, or one for each of {parts} tracks, values included")
        if mix == "sum" and len(set(widths)) > 1:
            raise ValueError(f"width {width}: embeddings of different widths cannot be summed; mix them by 'concat'")
        self.field, self.mix, self.values, self.vocab = field, mix, values, list(vocab)
        self.dim = widths[0] if mix == "sum" else sum(widths)
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size, dim in zip(vocab, widths, strict=False))
        self.linear = nn.Linear(values, widths[-1]) if values else None
        self.ends = nn.Parameter(torch.zeros(2, self.dim)) if start_end else None
        self.dropout = Dropout(dropout)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        tokens = field_of(inputs, self.field, "the tokens frontend reads its numbers there")
        tokens = tokens[..., None] if tokens.dim() == 2 else tokens
        if tokens.shape[2] != len(self.vocab):
            raise InputError(f"{self.field!r} has {tokens.shape[2]} tracks of tokens, vocab {len(self.vocab)}")
        tokens = zero_padding(tokens, mask).long()
        found = [self._embedded(tokens[..., track], track) for track in range(len(self.vocab))]
        if self.linear is not None:
            values = field_of(inputs, "values", f"the tokens frontend reads {self.values} numbers a frame there")
            found.append(self.linear(zero_padding(values.float().nan_to_num(nan=0.0), mask)))
        x = sum(found) if self.mix == "sum" else torch.cat(found, dim=-1)
        if self.ends is not None:
            index = torch.arange(mask.shape[1], device=mask.device)
            first, last = (index == 0)[:, None], (index == lengths_of(mask)[:, None] - 1)[..., None]
            x = x + first * self.ends[0] + last * self.ends[1]
        return Features(zero_padding(self.dropout(x), mask), mask)

    def _embedded(self, token: Tensor, track: int) -> Tensor:
        """One track's embeddings (B, T, width)."""
        wrong = (token < 0) | (token >= self.vocab[track])
        if token.device.type == "cpu" and not torch.compiler.is_compiling() and wrong.any():
            raise InputError(
                f"{self.field!r} has token {int(token[wrong][0])} in track {track}; "
                f"expected 0 to {self.vocab[track] - 1}"
            )
        return self.embeddings[track](token.masked_fill(wrong, 0)).masked_fill(wrong[..., None], torch.nan)
