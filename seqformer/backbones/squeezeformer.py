"""Squeezeformer (Kim et al., NeurIPS 2022, arXiv 2206.00888): attention and convolution each followed by feed-forward.

Sizes as in the official repository; parameters of the encoder, measured there and asserted in our tests:

| preset | depth | dim | heads | reduce / recover before block | parameters |
|---|---|---|---|---|---|
| squeezeformer_xs | 16 | 144 | 4 | 7 / 15 | 9,013,248 |
| squeezeformer_s | 18 | 196 | 4 | 8 / 17 | 18,540,424 |
| squeezeformer_sm | 16 | 256 | 4 | 7 / 15 | 28,151,808 |
| squeezeformer_m | 20 | 324 | 4 | 9 / 19 | 55,580,256 |
| squeezeformer_ml | 18 | 512 | 8 | 8 / 17 | 124,959,744 |
| squeezeformer_l | 22 | 640 | 8 | 10 / 21 | 236,171,520 |

Where we differ from the official code, so that padding never changes a result: convolutions are padded on both sides
and see zeros in place of padding, lengths are ceil(T / stride), BatchNorm counts real frames only, eps is 1e-5.
"""

from torch import Tensor, nn

from seqformer.backbones.presets import preset
from seqformer.nn.attention import Attention, Positions
from seqformer.nn.conv import ConvModule, TimeRecovery, TimeReduction
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.mask import zero_padding
from seqformer.nn.norm import LearnedScale
from seqformer.nn.positions import sinusoid_table
from seqformer.nn.subsample import Stem, make_stem
from seqformer.registry import register


class Block(nn.Module):
    """Attention, feed-forward, convolution, feed-forward: residuals, a learned scale before each, a LayerNorm after."""

    def __init__(self, dim: int, heads: int, kernel: int, ff_factor: int, positions: Positions, dropout: float):
        super().__init__()
        self.attention = Attention(dim, heads, positions)
        self.attention_ff = FeedForward(dim, ff_factor, dropout)
        self.conv = ConvModule(dim, kernel, "swish", dropout)
        self.conv_ff = FeedForward(dim, ff_factor, dropout)
        self.scales = nn.ModuleList(LearnedScale(dim) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, table: Tensor | None, bias: Tensor | None) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(self.scales[0](x), mask, table, bias)))
        x = self.norms[1](x + self.attention_ff(self.scales[1](x)))
        x = self.norms[2](x + self.conv(self.scales[2](x), mask))
        return self.norms[3](x + self.conv_ff(self.scales[3](x)))


@register("backbone", "squeezeformer")
class Squeezeformer(nn.Module):
    """x (B, T, in_dim), mask (B, T) -> (B, ceil(T / stride), dim), mask; the middle blocks run at half the frame rate.

    ``reduce_at`` halves the rate before that block and ``recover_at`` restores it, with the frames kept at the
    reduction added (the temporal U-Net of section 3.1.1); both None for one rate throughout. Raises ValueError when
    only one is given or they do not lie in order inside the blocks.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        heads: int,
        kernel: int = 31,
        reduce_at: int | None = None,
        recover_at: int | None = None,
        stem: Stem = "depthwise_conv2d",
        positions: Positions = "xl",
        ff_factor: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        if (reduce_at is None) != (recover_at is None) or not (reduce_at or 0) <= (recover_at or 0) < depth:
            raise ValueError(f"reduce_at {reduce_at} and recover_at {recover_at} must be in order and below {depth}")
        self.dim, self.reduce_at, self.recover_at = dim, reduce_at, recover_at
        self.stem = make_stem(stem, in_dim, dim)
        self.stride: int = self.stem.stride
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)  # not in the paper's text, but in its code and its parameter counts
        self.blocks = nn.ModuleList(Block(dim, heads, kernel, ff_factor, positions, dropout) for _ in range(depth))
        if reduce_at is not None:
            self.reduction, self.recovery = TimeReduction(dim), TimeRecovery(dim)

    def forward(
        self, x: Tensor, mask: Tensor, bias: Tensor | None = None, keep: dict[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        x, mask = self.stem(x, mask)
        x = self.norm(self.dropout(x * self.dim**0.5))
        full, table = (x, mask), sinusoid_table(x.shape[1], self.dim, x)
        for index, block in enumerate(self.blocks):
            if index == self.reduce_at:
                full, full_table = (x, mask), table
                x, mask = self.reduction(x, mask)
                table = sinusoid_table(x.shape[1], self.dim, x)
            if index == self.recover_at:
                x, mask, table = self.recovery(x, full[0]), full[1], full_table
            halved = self.reduce_at is not None and self.reduce_at <= index < self.recover_at
            x = block(x, mask, table, bias[..., ::2, ::2] if halved and bias is not None else bias)
            if keep is not None and index in keep:
                keep[index] = zero_padding(x, mask)
        return zero_padding(x, mask), mask

    def forward_intermediates(
        self, x: Tensor, mask: Tensor, indices: list[int] | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Output, its mask, and the output of the blocks at ``indices`` (all by default), each at its own frame rate.

        Negative indices count from the end. Raises IndexError when there is no such block.
        """
        every = range(len(self.blocks))
        wanted = every if indices is None else [every[index] for index in indices]
        keep = dict.fromkeys(wanted)
        x, mask = self.forward(x, mask, bias, keep)
        return x, mask, [keep[index] for index in wanted]


@preset(Squeezeformer)
def squeezeformer_xs(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=144, depth=16, heads=4, reduce_at=7, recover_at=15) | changes))


@preset(Squeezeformer)
def squeezeformer_s(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=196, depth=18, heads=4, reduce_at=8, recover_at=17) | changes))


@preset(Squeezeformer)
def squeezeformer_sm(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=256, depth=16, heads=4, reduce_at=7, recover_at=15) | changes))


@preset(Squeezeformer)
def squeezeformer_m(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=324, depth=20, heads=4, reduce_at=9, recover_at=19) | changes))


@preset(Squeezeformer)
def squeezeformer_ml(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=512, depth=18, heads=8, reduce_at=8, recover_at=17) | changes))


@preset(Squeezeformer)
def squeezeformer_l(**changes) -> Squeezeformer:
    return Squeezeformer(**(dict(dim=640, depth=22, heads=8, reduce_at=10, recover_at=21) | changes))
