"""The encoder that Squeezeformer, Conformer and their kin are settings of: one constructor argument per choice.

The files beside this one name the published settings. ``convention`` chooses whose arithmetic is done:

| convention | convolutions with a stride | eps | BatchNorm momentum | reduction sees | padding |
|---|---|---|---|---|---|
| seqformer | padded on both sides, ceil | 1e-5 | 0.015 | 2j - 2 ... 2j + 2 | never changes a result |
| nemo | the same | 1e-5 | 0.1 | 2j - 3 ... 2j + 1 | never changes a result |
| squeezeformer_tf | padded at the end, floor | 1e-3 | 0.015 | 2j ... 2j + 4 | leaks through the stem, as published |

Of the published arithmetic only what a real frame can feel is reproduced: padded frames of the output are zeros here,
and in training BatchNorm counts real frames only.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from seqformer.backbones.intermediates import Kept, forward_intermediates
from seqformer.errors import InputError
from seqformer.nn.attention import Attention, Positions
from seqformer.nn.conv import ConvActivation, ConvModule, TimeRecovery, TimeReduction, TimeUpsample, conv_width
from seqformer.nn.drop_path import drop_path
from seqformer.nn.dropout import Dropout
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.gate import Gate
from seqformer.nn.mask import zero_padding
from seqformer.nn.norm import LearnedScale, NoNorm, NormKind, make_norm, norm_sum
from seqformer.nn.positions import sinusoid_table
from seqformer.nn.subsample import Stem, make_stem

NormAt = Literal["pre", "post", "post_scale_in", "post_scale_out"]
ConventionName = Literal["seqformer", "nemo", "squeezeformer_tf"]


@dataclass(frozen=True)
class Convention:
    """Where published implementations compute differently with the same weights."""

    eps: float = 1e-5
    momentum: float = 0.015
    reduction_left: int = 2
    official: bool = False  # lengths and ends as in the Squeezeformer repository


CONVENTIONS = {
    "seqformer": Convention(),
    "nemo": Convention(momentum=0.1, reduction_left=3),
    "squeezeformer_tf": Convention(eps=1e-3, reduction_left=0, official=True),
}


class Block(nn.Module):
    """Residual branches in the order of a layout: A attention, C convolution, F feed-forward, f half of a feed-forward.

    ``norm_at``: ``pre`` puts a norm before each branch and one at the end of the block (Conformer), ``post`` one after
    each residual sum; ``post_scale_in`` and ``post_scale_out`` have a learned scale at the entry (Squeezeformer) or
    the exit of a branch beside it. ``rate`` is the share of items for which training leaves a branch out.
    """

    def __init__(
        self,
        layout: str,
        parts: dict[str, Callable[[], nn.Module]],
        norm_at: NormAt,
        make_norm: Callable[[], nn.Module],
        make_scale: Callable[[], nn.Module],
        rate: float,
    ):
        super().__init__()
        self.letters, self.rate = layout, rate
        entry = {"pre": make_norm, "post_scale_in": make_scale}.get(norm_at, NoNorm)
        leave = {"post_scale_out": make_scale}.get(norm_at, NoNorm)
        self.branches = nn.ModuleList(parts[letter.upper()]() for letter in layout)
        self.before = nn.ModuleList(entry() for _ in layout)
        self.scales = nn.ModuleList(leave() for _ in layout)
        self.after = nn.ModuleList(NoNorm() if norm_at == "pre" else make_norm() for _ in layout)
        self.final = make_norm() if norm_at == "pre" else NoNorm()

    def forward(self, x: Tensor, mask: Tensor, table: Tensor | None, bias: Tensor | None) -> Tensor:
        for index, letter in enumerate(self.letters):
            entry, branch = self.before[index], self.branches[index]
            scale = entry if isinstance(entry, LearnedScale) else None  # the branch folds it into its first layer
            y = x if scale else entry(x, mask)
            if letter == "A":
                y = branch(y, mask, table, bias, scale)
            elif letter == "C":
                y = branch(y, mask, scale)
            else:
                y = branch(y, scale)
            y = drop_path(self.scales[index](y, mask), self.rate, self.training)
            x = norm_sum(self.after[index], x, y, 0.5 if letter == "f" else 1.0, mask)
        return self.final(x, mask)


class Encoder(nn.Module):
    """x (B, T, in_dim), mask (B, T) -> (B, ceil(T / stride), dim), mask.

    ``layout`` is the order of a block's branches (see Block; C3AF is CCCAF), one string or one per block.
    ``reduce_at`` halves the frame rate before a block, or before several, and ``recover_at`` restores it, innermost
    first, adding the frames kept at the reduction (the temporal U-Net of Squeezeformer, section 3.1.1). Without
    ``recover_at`` the rate is restored before the last block; with ``[]`` it never is, and ``stride`` grows.
    ``context`` (left, right) limits attention to so many frames of the block's own rate, -1 for no limit; ``causal``
    lets no depthwise convolution see later frames, nor a reduction, but for the published ones. ``long_skip`` adds the
    stem's output to that of every block. ``upsample`` brings the output back to the input's frames by a transposed
    convolution of the stem's stride, and so for heads that read earlier blocks, those in ``upsample_own`` by one of
    their own.
    ``drop_path`` is the rate of the last block, rising from 0 at the first. ``bias`` (B, H, T, T), T being frames after
    the stem, is added to the attention logits of every block; (B, depth H, T, T) holds one for each block instead.
    Raises ValueError when choices do not go together, InputError for a bias of another shape.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        heads: int,
        layout: str | list[str] = "AFCF",
        norm_at: NormAt = "post_scale_in",
        norm: NormKind = "layer",
        positions: Positions = "xl",
        max_distance: int | None = None,
        context: tuple[int, int] | None = None,
        kernel: int = 31,
        causal: bool = False,
        conv_activation: ConvActivation = "swish",
        conv_norm: NormKind = "batch",
        gate: Gate = "none",
        ff_factor: float = 4.0,
        ff_glu: bool = False,
        stem: Stem = "depthwise_conv2d",
        stem_stride: int | None = None,
        stem_channels: int | None = None,
        scale_input: bool = True,
        input_norm: bool = True,
        reduce_at: int | list[int] | None = None,
        recover_at: int | list[int] | None = None,
        long_skip: bool = False,
        upsample: bool = False,
        upsample_own: list[int] = (),
        attention_bias: bool = True,
        conv_bias: bool = True,
        ff_bias: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        convention: ConventionName = "seqformer",
    ):
        super().__init__()
        chosen = CONVENTIONS[convention]
        layouts = [expand(text) for text in ([layout] * depth if isinstance(layout, str) else layout)]
        if len(layouts) != depth:
            raise ValueError(f"layout has {len(layouts)} strings for a depth of {depth}")
        self.reduce_at, self.recover_at = u_net(reduce_at, recover_at, depth)
        if long_skip and self.reduce_at:
            raise ValueError("long_skip needs one frame rate throughout: leave reduce_at out")
        if upsample and len(self.reduce_at) > len(self.recover_at):
            raise ValueError("upsample needs a restored frame rate: leave recover_at out, or give it")
        if any(not upsample or not 0 <= index < depth for index in upsample_own):
            raise ValueError(f"upsample_own {list(upsample_own)} needs upsample, and blocks below {depth}")
        self.dim, self.heads, self.long_skip = dim, heads, long_skip
        self.stem = make_stem(stem, in_dim, dim, stem_stride, stem_channels, chosen.official)
        self.stride: int = self.stem.stride * 2 ** (len(self.reduce_at) - len(self.recover_at))
        self.scale = dim**0.5 if scale_input else 1.0
        self.dropout = Dropout(dropout)
        norm_of = partial(make_norm, eps=chosen.eps, momentum=chosen.momentum)
        self.norm = norm_of(norm, dim) if input_norm else NoNorm()

        width = conv_width(dim, conv_activation)
        parts = {
            "A": lambda: Attention(
                dim, heads, positions, dropout, attention_dropout, context, max_distance, attention_bias
            ),
            "C": lambda: ConvModule(
                dim, kernel, conv_activation, dropout, causal, gate, conv_bias, norm_of(conv_norm, width)
            ),
            "F": lambda: FeedForward(dim, ff_factor, dropout, ff_glu, ff_bias),
        }
        self.blocks = nn.ModuleList(
            Block(
                letters,
                parts,
                norm_at,
                partial(norm_of, norm, dim),
                partial(LearnedScale, dim),
                drop_path * index / max(depth - 1, 1),
            )
            for index, letters in enumerate(layouts)
        )
        back = 4 if causal and convention == "seqformer" else chosen.reduction_left
        self.reductions = nn.ModuleList(TimeReduction(dim, back, drop_odd=chosen.official) for _ in self.reduce_at)
        self.recoveries = nn.ModuleList(TimeRecovery(dim) for _ in self.recover_at)
        self.upsample = TimeUpsample(dim, self.stem.stride, dropout) if upsample else None
        own = {str(index): TimeUpsample(dim, self.stem.stride, dropout) for index in upsample_own}
        self.upsample_own = nn.ModuleDict(own)
        if upsample:
            self.stride = 1
        self.needs_table = positions == "xl"

    def forward(
        self, x: Tensor, mask: Tensor, bias: Tensor | None = None, keep: Kept | None = None
    ) -> tuple[Tensor, Tensor]:
        given = mask
        x, mask = self.stem(x, mask)
        self._check_bias(bias, x.shape[1])
        x = self.norm(self.dropout(x * self.scale), mask)
        skip, kept, table = x, [], self._table(x)
        for index, block in enumerate(self.blocks):
            if index in self.reduce_at:
                kept.append((x, mask, table, bias))
                x, mask = self.reductions[self.reduce_at.index(index)](x, mask)
                table, bias = self._table(x), None if bias is None else _halved(bias, x.shape[1])
            if index in self.recover_at:
                full, mask, table, bias = kept.pop()
                x = self.recoveries[self.recover_at.index(index)](x, full)
            x = block(x, mask, table, self._bias_of(index, bias))
            if self.long_skip:
                x = x + skip
            if keep is not None and index in keep:
                keep[index] = self._out(x, mask, given, index)
        return self._out(x, mask, given)

    forward_intermediates = forward_intermediates

    def _check_bias(self, bias: Tensor | None, frames: int) -> None:
        if bias is None:
            return
        if bias.shape[1] not in (self.heads, self.heads * len(self.blocks)):
            raise InputError(
                f"the bias of attention has {bias.shape[1]} maps; expected one for each of {self.heads} heads, "
                f"or for each head of {len(self.blocks)} blocks, {self.heads * len(self.blocks)}"
            )
        if bias.shape[2] != frames or bias.shape[3] != frames:
            raise InputError(
                f"the bias of attention is over {bias.shape[2]} x {bias.shape[3]} frames, and the stem, of stride "
                f"{self.stem.stride}, leaves {frames}; take a stem of stride 1, such as 'linear'"
            )

    def _bias_of(self, index: int, bias: Tensor | None) -> Tensor | None:
        """A block's own maps, where there are as many as all blocks have heads."""
        if bias is None or bias.shape[1] == self.heads:
            return bias
        return bias[:, index * self.heads : (index + 1) * self.heads]

    def _table(self, x: Tensor) -> Tensor | None:
        return sinusoid_table(x.shape[1], self.dim, x) if self.needs_table else None

    def _out(self, x: Tensor, mask: Tensor, given: Tensor, index: int | None = None) -> tuple[Tensor, Tensor]:
        """Frames as they leave: at the input's rate where that is asked for, padding zeroed."""
        if self.upsample is not None:
            own = f"{index}" in self.upsample_own
            upsample = self.upsample_own[f"{index}"] if own else self.upsample
            x, mask = upsample(x, given.shape[1]), given
        return zero_padding(x, mask), mask


def _halved(bias: Tensor, frames: int) -> Tensor:
    """Every second query and key, (B, maps, frames, frames)."""
    # Picked by index: export cannot see that a slice with a step is as long as a convolution with that stride.
    kept = torch.arange(frames, device=bias.device) * 2
    return bias.index_select(2, kept).index_select(3, kept)


def expand(layout: str) -> str:
    """C3AF -> CCCAF. Raises ValueError on anything but the letters A, C, F, f, each with an optional count."""
    if not re.fullmatch(r"(?:[ACFf]\d*)+", layout):
        raise ValueError(f"layout {layout!r}: expected letters A, C, F or f, each with an optional count, such as C3AF")
    return "".join(letter * int(count or 1) for letter, count in re.findall(r"([ACFf])(\d*)", layout))


def u_net(reduce_at: int | list[int] | None, recover_at: int | list[int] | None, depth: int) -> tuple[list, list]:
    """Blocks before which the frame rate is halved, and restored. Raises ValueError when they are not in order."""
    reduce = [] if reduce_at is None else [reduce_at] if isinstance(reduce_at, int) else list(reduce_at)
    recover = [recover_at] if isinstance(recover_at, int) else list(recover_at or [])
    if recover_at is None and reduce:
        if len(reduce) > 1:
            raise ValueError(f"reduce_at {reduce} needs recover_at: as many blocks, fewer, or [] for none")
        recover = [depth - 1]
    moves = sorted([(index, 1) for index in reduce] + [(index, -1) for index in recover])
    open_now = list(accumulate(step for _, step in moves))
    distinct = len({index for index, _ in moves}) == len(moves)
    if not distinct or any(not 0 <= index < depth for index, _ in moves) or any(level < 0 for level in open_now):
        raise ValueError(f"reduce_at {reduce} and recover_at {recover} must be in order and below {depth}")
    return sorted(reduce), sorted(recover)
