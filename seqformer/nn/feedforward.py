"""The position-wise feed-forward module."""

from torch import Tensor, nn


class FeedForward(nn.Sequential):
    """Linear, Swish, dropout, Linear, dropout: x (B, T, D) -> (B, T, D), ``factor`` times wider inside."""

    def __init__(self, dim: int, factor: int = 4, dropout: float = 0.0):
        super().__init__(
            nn.Linear(dim, factor * dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(factor * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
