"""A Transformer decoder layer, of all units at once or of the next one.

Axes: B batch, U units, T frames, D width, H heads, K head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.dropout import Dropout
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.norm import LayerNorm

Past = tuple[Tensor, Tensor]  # keys and values (B, H, U, K) of the units before


class DecoderLayer(nn.Module):
    """Pre-norm: self-attention to earlier units, attention to frames, feed-forward (Vaswani et al. 2017).

    y (B, U, D), key and value of frames (B, T, D) each, reads (B, 1, 1, T) bool, True where frames may be read ->
    (B, U, D) and what the next unit needs of these. Raises ValueError when heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, ff_factor: float = 4, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.unit_norm, self.frame_norm, self.ff_norm = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.query_key_value, self.unit_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.frame_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.feed_forward = FeedForward(dim, ff_factor, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, y: Tensor, key: Tensor, value: Tensor, reads: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        q_BHUK, k_BHUK, v_BHUK = map(self._split, self.query_key_value(self.unit_norm(y)).chunk(3, dim=-1))
        if past is not None:  # one unit more, which may look at all of them
            k_BHUK, v_BHUK = torch.cat([past[0], k_BHUK], dim=2), torch.cat([past[1], v_BHUK], dim=2)
        found = F.scaled_dot_product_attention(q_BHUK, k_BHUK, v_BHUK, is_causal=past is None)
        y = y + self.dropout(self.unit_out(found.transpose(1, 2).flatten(2)))
        q_BHUK = self._split(self.query(self.frame_norm(y)))
        found = F.scaled_dot_product_attention(q_BHUK, self._split(key), self._split(value), reads)
        y = y + self.dropout(self.frame_out(found.transpose(1, 2).flatten(2)))
        return y + self.feed_forward(self.ff_norm(y)), (k_BHUK, v_BHUK)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
