"""The position-wise feed-forward module, and the hidden layer of a head."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.dropout import Dropout
from seqformer.nn.linear import joined
from seqformer.nn.norm import LearnedScale
from seqformer.nn.paths import fast_on_cpu

Activation = Literal["none", "relu", "gelu", "swish", "tanh", "swiglu"]


def swiglu(x: Tensor) -> Tensor:
    """Swish of the first half of the channels times the second: x (..., 2D) -> (..., D) (Shazeer 2020)."""
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


def silu(x: Tensor) -> Tensor:
    """Swish, in place of x where no gradient asks for it: new memory costs a CPU more than the arithmetic."""
    return F.silu(x, inplace=not torch.is_grad_enabled() and fast_on_cpu(x))


class FeedForward(nn.Module):
    """Linear, Swish, dropout, Linear, dropout: x (B, T, D) -> (B, T, D), ``factor`` times wider inside.

    ``glu`` multiplies the Swish with a second projection of the same width (SwiGLU, Shazeer 2020). ``scale`` is a
    learned scale before it.
    """

    def __init__(self, dim: int, factor: float = 4, dropout: float = 0.0, glu: bool = False, bias: bool = True):
        super().__init__()
        width = round(factor * dim)
        self.glu = glu
        self.expand = nn.Linear(dim, 2 * width if glu else width, bias=bias)
        self.project = nn.Linear(width, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scale: LearnedScale | None = None) -> Tensor:
        x = joined(x, (self.expand,), scale)
        x = swiglu(x) if self.glu else silu(x)
        return self.dropout(self.project(self.dropout(x)))


class SwiGLU(nn.Module):
    """``swiglu`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x)


def hidden_layer(dim: int, hidden: int | None, activation: Activation = "none") -> nn.Module:
    """The layer of a head before its last: linear, ``hidden`` wide, and an activation; nothing where hidden is None.

    Raises ValueError when there is an activation and no layer.
    """
    if hidden is None and activation != "none":
        raise ValueError(f"activation is {activation!r} and hidden null; expected the width of a hidden layer")
    if hidden is None:
        return nn.Identity()
    if activation == "none":
        return nn.Linear(dim, hidden)
    if activation == "swiglu":
        return nn.Sequential(nn.Linear(dim, 2 * hidden), SwiGLU())
    made = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU, "tanh": nn.Tanh}[activation]()
    return nn.Sequential(nn.Linear(dim, hidden), made)
