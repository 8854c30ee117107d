"""Multi-head self-attention with relative positions.

Axes: B batch, T frames, D width, H heads, K head width, R = 2T - 1 distances.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer import kernels
from seqformer.nn.block_attention import attend_in_blocks, fast_in_blocks
from seqformer.nn.dropout import Dropout
from seqformer.nn.linear import joined
from seqformer.nn.norm import LearnedScale
from seqformer.nn.positions import alibi_slopes, distances, relative_shift, rotate, t5_bucket

Positions = Literal["xl", "rotary", "alibi", "t5", "shaw", "none"]
T5_BUCKETS = 32
FARTHEST = {"t5": 128, "shaw": 16}  # distances beyond it are one


class Attention(nn.Module):
    """Self-attention over real frames: x (B, T, D), mask (B, T) -> (B, T, D).

    ``positions`` says how a pair's distance enters its score:
    ``xl``: ((q + u)·k + (q + v)·P(i - j)) / sqrt(K), u and v per head and untied between blocks (Transformer-XL,
    equation of section 3.3); it needs ``table`` (R, D) from ``sinusoid_table``. ``rotary`` turns queries and keys.
    ``alibi`` subtracts slope * |i - j|, ``t5`` adds a learned number per head and bucket of distances, ``shaw``
    learned keys, q·(k + a(j - i)), one table for all heads (Shaw et al. 2018); ``max_distance`` is where the last
    two stop telling distances apart. ``bias`` (B, H, T, T) is added to the logits. ``context`` (left, right) limits
    the keys of a query to so many frames before and after it, -1 for no limit. ``scale`` is a learned scale before it.
    ``dropout`` is of the output, ``attention_dropout`` of the weights. Raises ValueError when heads do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        positions: Positions = "xl",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        context: tuple[int, int] | None = None,
        max_distance: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads, self.positions, self.attention_dropout, self.context = heads, positions, attention_dropout, context
        self.max_distance = max_distance or FARTHEST.get(positions)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=bias) for _ in range(4))
        self.dropout = Dropout(dropout)
        width = dim // heads
        if positions == "xl":
            self.position = nn.Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, width))
            self.position_bias = nn.Parameter(torch.zeros(heads, width))
        elif positions == "alibi":
            self.register_buffer("slopes", alibi_slopes(heads), persistent=False)
        elif positions == "t5":
            self.buckets = nn.Parameter(torch.zeros(heads, T5_BUCKETS))
        elif positions == "shaw":
            self.shifts = nn.Parameter(torch.randn(2 * self.max_distance + 1, width) * width**-0.5)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        table: Tensor | None = None,
        bias: Tensor | None = None,
        scale: LearnedScale | None = None,
    ) -> Tensor:
        q, k, value = self._projected(x, scale)
        dropout = self.attention_dropout if self.training else 0.0
        if self.positions == "xl" and not dropout and kernels.active(q):
            y = self._fused(q, k, value, mask, table, bias)
        elif self.positions == "xl" and bias is None and not dropout and fast_in_blocks(q):
            y = self._in_blocks(q, k, value, mask, table)
        else:
            q_BHTK, k_BHTK, logit_BHTT = self._scores(q, k, mask, table, bias)
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, value.transpose(1, 2), logit_BHTT, dropout)
            y = y_BHTK.transpose(1, 2)
        return self.dropout(self.out(y.flatten(2)))

    def weights(
        self,
        x: Tensor,
        mask: Tensor,
        table: Tensor | None = None,
        bias: Tensor | None = None,
        scale: LearnedScale | None = None,
    ) -> Tensor:
        """What ``forward`` averages values with, (B, H, T, T), for looking at."""
        q, k, _ = self._projected(x, scale)
        q_BHTK, k_BHTK, logit_BHTT = self._scores(q, k, mask, table, bias)
        if logit_BHTT.dtype == torch.bool:
            logit_BHTT = torch.zeros_like(logit_BHTT, dtype=x.dtype).masked_fill(~logit_BHTT, float("-inf"))
        return (torch.matmul(q_BHTK, k_BHTK.mT) * q_BHTK.shape[-1] ** -0.5 + logit_BHTT).softmax(dim=-1)

    def _projected(self, x: Tensor, scale: LearnedScale | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, T, H, K) each."""
        projected = joined(x, (self.query, self.key, self.value), scale)
        return projected.unflatten(-1, (3, self.heads, -1)).unbind(2)

    def _in_blocks(self, q: Tensor, k: Tensor, value: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        p_RHK = self.position(table).unflatten(-1, (self.heads, -1))
        return attend_in_blocks(q, k, value, p_RHK, self.content_bias, self.position_bias, mask, self.context)

    def _fused(self, q: Tensor, k: Tensor, value: Tensor, mask: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        content, position = ((q + added).to(q.dtype) for added in (self.content_bias, self.position_bias))
        p_RHK = self.position(table).unflatten(-1, (self.heads, -1)).to(q.dtype)
        return kernels.relative_attention(content, position, k, value, p_RHK, mask, bias, self.context)

    def _scores(
        self, q: Tensor, k: Tensor, mask: Tensor, table: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, and what is added to their scaled products: -inf for hidden keys, or a bool mask alone."""
        q_BHTK, k_BHTK = q.transpose(1, 2), k.transpose(1, 2)
        hidden = self._hidden(mask)
        position_BHTT = None
        if self.positions == "rotary":
            q_BHTK, k_BHTK = rotate(q_BHTK), rotate(k_BHTK)
        elif self.positions == "xl":
            p_HKR = self.position(table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
            scaled = (q_BHTK + self.position_bias[:, None]) * q_BHTK.shape[-1] ** -0.5
            position_BHTT = relative_shift(torch.matmul(scaled, p_HKR))
            q_BHTK = q_BHTK + self.content_bias[:, None]
        elif self.positions != "none":
            position_BHTT = self._distance_score(q_BHTK)
        if position_BHTT is not None:
            bias = position_BHTT if bias is None else position_BHTT + bias
        if bias is None:
            return q_BHTK, k_BHTK, ~hidden
        return q_BHTK, k_BHTK, bias.masked_fill(hidden, float("-inf")).to(q_BHTK.dtype)

    def _distance_score(self, q_BHTK: Tensor) -> Tensor:
        """The scores of distances that alibi, t5 and shaw add: (1 or B, H, T, T)."""
        distance = distances(q_BHTK.shape[2], q_BHTK)
        if self.positions == "alibi":
            return (-distance.abs() * self.slopes[:, None, None]).to(q_BHTK.dtype)[None]
        if self.positions == "t5":
            return self.buckets[:, t5_bucket(distance, T5_BUCKETS, self.max_distance)][None]
        column = distance.clamp(-self.max_distance, self.max_distance) + self.max_distance
        score_BHTR = torch.matmul(q_BHTK * q_BHTK.shape[-1] ** -0.5, self.shifts.mT)
        return score_BHTR.gather(-1, column.expand(*q_BHTK.shape[:2], -1, -1))

    def _hidden(self, mask: Tensor) -> Tensor:
        """True where a query must not look: (B, 1, 1 or T, T).

        An item without any real frame attends to its own zeros, and with a limited context a padded query to itself:
        a row of -inf alone would give NaN gradients.
        """
        hidden = ~(mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        if self.context is None:
            return hidden
        distance, (left, right) = distances(mask.shape[1], mask), self.context
        beyond = torch.zeros_like(distance, dtype=torch.bool)
        if left >= 0:
            beyond = beyond | (distance < -left)
        if right >= 0:
            beyond = beyond | (distance > right)
        return (hidden | beyond) & (distance != 0)
