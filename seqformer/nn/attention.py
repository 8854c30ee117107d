"""Multi-head self-attention with relative positions.

Axes: B batch, T frames, D width, H heads, K head width, R = 2T - 1 distances.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.positions import relative_shift, rotate

Positions = Literal["xl", "rotary", "none"]


class Attention(nn.Module):
    """Self-attention over real frames: x (B, T, D), mask (B, T) -> (B, T, D).

    ``xl`` scores a pair by ((q + u)·k + (q + v)·P(i - j)) / sqrt(K), u and v per head and untied between blocks
    (Transformer-XL, equation of section 3.3); it needs ``table`` (R, D) from ``sinusoid_table``. ``rotary`` turns
    queries and keys instead. ``bias`` (B, H, T, T) is added to the logits. Raises ValueError when heads do not
    divide dim.
    """

    def __init__(self, dim: int, heads: int, positions: Positions = "xl", dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads, self.positions, self.dropout = heads, positions, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        if positions == "xl":
            self.position = nn.Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
            self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))

    def forward(self, x: Tensor, mask: Tensor, table: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (self._split(part(x)) for part in (self.query, self.key, self.value))
        # An item without any real frame attends to its own zeros: a row of -inf alone would give NaN gradients.
        hidden = ~(mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        if self.positions == "rotary":
            q_BHTK, k_BHTK = rotate(q_BHTK), rotate(k_BHTK)
        scale = q_BHTK.shape[-1] ** -0.5
        if self.positions == "xl":
            p_HKR = self.position(table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
            score_BHTR = torch.matmul((q_BHTK + self.position_bias[:, None]) * scale, p_HKR)
            logit_BHTT = relative_shift(score_BHTR)
            logit_BHTT = logit_BHTT if bias is None else logit_BHTT + bias
            logit_BHTT = logit_BHTT.masked_fill(hidden, float("-inf"))
            q_BHTK = q_BHTK + self.content_bias[:, None]
        elif bias is not None:
            logit_BHTT = bias.masked_fill(hidden, float("-inf"))
        else:
            logit_BHTT = ~hidden
        dropout = self.dropout if self.training else 0.0
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, _as(logit_BHTT, q_BHTK), dropout)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _as(logit: Tensor, like: Tensor) -> Tensor:
    return logit if logit.dtype == torch.bool else logit.to(like.dtype)
