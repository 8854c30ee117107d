"""Conformer (Gulati et al., Interspeech 2020, arXiv 2005.08100): attention and convolution between half feed-forwards.

| preset | depth | dim | heads | kernel | parameters | source of the size |
|---|---|---|---|---|---|---|
| conformer_ctc_s | 16 | 144 | 4 | 31 | 8,711,136 | baseline of the Squeezeformer paper, official repository |
| conformer_ctc_m | 16 | 256 | 4 | 31 | 27,328,000 | the same |
| conformer_ctc_l | 18 | 512 | 8 | 31 | 121,436,160 | the same |
| conformer_s, _m, _l | 16, 16, 17 | 144, 256, 512 | 4, 4, 8 | 32 | not published alone | Conformer paper, table 1 |

``input_norm`` is the LayerNorm of the official Squeezeformer repository before block 0, which the paper does not have.
Padding is handled as in ``squeezeformer.py``.
"""

from torch import Tensor, nn

from seqformer.backbones.presets import preset
from seqformer.nn.attention import Attention, Positions
from seqformer.nn.conv import ConvModule
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.mask import zero_padding
from seqformer.nn.positions import sinusoid_table
from seqformer.nn.subsample import Stem, make_stem
from seqformer.registry import register


class Block(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward: a LayerNorm before each, one more at the end."""

    def __init__(self, dim: int, heads: int, kernel: int, ff_factor: int, positions: Positions, dropout: float):
        super().__init__()
        self.first_ff = FeedForward(dim, ff_factor, dropout)
        self.attention = Attention(dim, heads, positions)
        self.conv = ConvModule(dim, kernel, "glu", dropout)
        self.second_ff = FeedForward(dim, ff_factor, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, table: Tensor | None, bias: Tensor | None) -> Tensor:
        x = x + 0.5 * self.first_ff(self.norms[0](x))
        x = x + self.dropout(self.attention(self.norms[1](x), mask, table, bias))
        x = x + self.conv(self.norms[2](x), mask)
        return self.norms[4](x + 0.5 * self.second_ff(self.norms[3](x)))


@register("backbone", "conformer")
class Conformer(nn.Module):
    """x (B, T, in_dim), mask (B, T) -> (B, ceil(T / stride), dim), mask."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        heads: int,
        kernel: int = 31,
        stem: Stem = "conv2d",
        positions: Positions = "xl",
        ff_factor: int = 4,
        dropout: float = 0.1,
        input_norm: bool = False,
    ):
        super().__init__()
        self.dim = dim
        self.stem = make_stem(stem, in_dim, dim)
        self.stride: int = self.stem.stride
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim) if input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(dim, heads, kernel, ff_factor, positions, dropout) for _ in range(depth))

    def forward(
        self, x: Tensor, mask: Tensor, bias: Tensor | None = None, keep: dict[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        x, mask = self.stem(x, mask)
        x = self.norm(self.dropout(x * self.dim**0.5))
        table = sinusoid_table(x.shape[1], self.dim, x)
        for index, block in enumerate(self.blocks):
            x = block(x, mask, table, bias)
            if keep is not None and index in keep:
                keep[index] = zero_padding(x, mask)
        return zero_padding(x, mask), mask

    def forward_intermediates(
        self, x: Tensor, mask: Tensor, indices: list[int] | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Output, its mask, and the output of the blocks at ``indices`` (all by default).

        Negative indices count from the end. Raises IndexError when there is no such block.
        """
        every = range(len(self.blocks))
        wanted = every if indices is None else [every[index] for index in indices]
        keep = dict.fromkeys(wanted)
        x, mask = self.forward(x, mask, bias, keep)
        return x, mask, [keep[index] for index in wanted]


@preset(Conformer)
def conformer_ctc_s(**changes) -> Conformer:
    return Conformer(**(dict(dim=144, depth=16, heads=4, input_norm=True) | changes))


@preset(Conformer)
def conformer_ctc_m(**changes) -> Conformer:
    return Conformer(**(dict(dim=256, depth=16, heads=4, input_norm=True) | changes))


@preset(Conformer)
def conformer_ctc_l(**changes) -> Conformer:
    return Conformer(**(dict(dim=512, depth=18, heads=8, input_norm=True) | changes))


@preset(Conformer)
def conformer_s(**changes) -> Conformer:
    return Conformer(**(dict(dim=144, depth=16, heads=4, kernel=32) | changes))


@preset(Conformer)
def conformer_m(**changes) -> Conformer:
    return Conformer(**(dict(dim=256, depth=16, heads=4, kernel=32) | changes))


@preset(Conformer)
def conformer_l(**changes) -> Conformer:
    return Conformer(**(dict(dim=512, depth=17, heads=8, kernel=32) | changes))
