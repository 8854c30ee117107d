"""The position-wise feed-forward module."""

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """Linear, Swish, dropout, Linear, dropout: x (B, T, D) -> (B, T, D), ``factor`` times wider inside.

    ``glu`` multiplies the Swish with a second projection of the same width (SwiGLU, Shazeer 2020).
    """

    def __init__(self, dim: int, factor: float = 4, dropout: float = 0.0, glu: bool = False, bias: bool = True):
        super().__init__()
        width = round(factor * dim)
        self.glu = glu
        self.expand = nn.Linear(dim, 2 * width if glu else width, bias=bias)
        self.project = nn.Linear(width, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.glu:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.silu(x)
        return self.dropout(self.project(self.dropout(x)))
