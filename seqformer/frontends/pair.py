"""A number for every pair of frames, such as the probability that two bases pair: a bias of the attention logits."""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.errors import InputError
from seqformer.frontends.features import Features, field_of, inner_frontend
from seqformer.nn.dropout import Dropout
from seqformer.registry import register


@register("frontend", "pair")
class Pair(nn.Module):
    """Another frontend, and inputs[field] (B, T, T) or (B, T, T, tracks) -> its Features with bias (B, maps, T, T).

    ``maps`` is ``heads``, the backbone's, for one bias that all its blocks share, or ``blocks`` * heads, with
    ``blocks`` its depth, for one of each block. Convolutions lead there: ``conv`` one of so many ``channels`` after
    the other with Swish, ``residual`` a pointwise one to channels that must be equal, to which each next adds what it
    makes of their Swish; then one more, pointwise in ``residual``, to the maps. ``kernel`` 1 makes all pointwise.
    Every one sees zeros for padded pairs as for those beyond the edge. With ``scale`` each map is multiplied by a
    learned number that starts there: at 0, training starts from attention without a bias; None leaves it out.

    ``log_floor`` takes ln(p + floor) - ln(floor) of probabilities p first, so that no pair is 0, as padding is; the
    constant apart, that is Ribonanza's winner. ``noise`` is the deviation of Gaussian noise added to p in training, and
    ``dropout`` is of the channels' values. A missing number (NaN) reads as 0.

    The frontend inside must keep the number of frames, and so must the backbone's stem. After Ribonanza's winners: the
    2nd place has two of kernel 7 over 64 channels and one bias for all blocks, the 1st residuals, logarithm and scale,
    the 5th the noise. Where they give each block convolutions of its own, blocks share all but the last one here.
    """

    def __init__(
        self,
        frontend: dict[str, Any],
        heads: int,
        blocks: int = 1,
        field: str = "pair",
        tracks: int = 1,
        kind: Literal["conv", "residual"] = "conv",
        channels: tuple[int, ...] = (64,),
        kernel: int = 7,
        scale: float | None = 0.0,
        log_floor: float | None = None,
        noise: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.frontend = inner_frontend(frontend)
        if isinstance(self.frontend, Pair) or getattr(self.frontend, "hop", 1) != 1:
            raise ValueError(f"frontend {frontend['name']!r} cannot be inside: it changes the frames, or is a pair too")
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd: a pair is seen from both sides alike")
        if not channels or (kind == "residual" and len(set(channels)) > 1):
            raise ValueError(f"channels {list(channels)} must be one or more, and equal for kind 'residual'")
        self.field, self.tracks, self.kind = field, tracks, kind
        self.log_floor, self.noise, self.dim = log_floor, noise, self.frontend.dim
        last = 1 if kind == "residual" else kernel
        widths = [channels[0], *channels] if kind == "residual" else [tracks, *channels]
        self.entry = nn.Conv2d(tracks, channels[0], 1) if kind == "residual" else None
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel, padding=kernel // 2) for inner, outer in pairwise(widths)
        )
        self.out = nn.Conv2d(channels[-1], blocks * heads, last, padding=last // 2)
        self.scale = None if scale is None else nn.Parameter(torch.full((blocks * heads,), scale))
        self.dropout = Dropout(dropout)

    @property
    def fit(self):
        """That of the frontend inside, where it has one."""
        return self.frontend.fit

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        features = self.frontend(inputs, mask)
        pair_BTTP = field_of(inputs, self.field, "the pair frontend reads a number for each two frames there")
        pair_BTTP = pair_BTTP[..., None] if pair_BTTP.dim() == 3 else pair_BTTP
        frames = features.x.shape[1]
        if pair_BTTP.shape[1] != frames or pair_BTTP.shape[2] != frames or pair_BTTP.shape[3] != self.tracks:
            raise InputError(
                f"{self.field!r} has shape {tuple(pair_BTTP.shape[1:])}; expected ({frames}, {frames}, {self.tracks}) "
                f"for {frames} frames and {self.tracks} tracks"
            )
        beyond_B1TT = ~(features.mask[:, :, None] & features.mask[:, None, :])[:, None]
        return Features(features.x, features.mask, self._maps(self._read(pair_BTTP), beyond_B1TT))

    def _read(self, pair_BTTP: Tensor) -> Tensor:
        """Numbers as the convolutions see them, (B, tracks, T, T), float32."""
        p_BPTT = pair_BTTP.permute(0, 3, 1, 2).float().nan_to_num(nan=0.0)
        if self.training and self.noise:
            p_BPTT = p_BPTT + self.noise * torch.randn_like(p_BPTT)
        return p_BPTT if self.log_floor is None else (p_BPTT.clamp(min=0) / self.log_floor).log1p()

    def _maps(self, x_BCTT: Tensor, beyond_B1TT: Tensor) -> Tensor:
        if self.entry is not None:
            x_BCTT = self.entry(x_BCTT.masked_fill(beyond_B1TT, 0))
        for conv in self.convs:
            if self.kind == "residual":
                x_BCTT = x_BCTT + self.dropout(conv(F.silu(x_BCTT).masked_fill(beyond_B1TT, 0)))
            else:
                x_BCTT = self.dropout(F.silu(conv(x_BCTT.masked_fill(beyond_B1TT, 0))))
        y_BMTT = self.out(x_BCTT.masked_fill(beyond_B1TT, 0))
        if self.scale is not None:
            y_BMTT = y_BMTT * self.scale[:, None, None]
        return y_BMTT.masked_fill(beyond_B1TT, 0)
