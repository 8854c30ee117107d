"""The loss of a transducer (Graves 2012, arXiv 1211.3711): -log of the summed probability of all alignments.

Axes: B batch, T frames, U units, W = U + 1 places, V vocabulary, J joint width, N = T + U anti-diagonals. At (t, u), in
frame t with u units said, a blank leads to (t + 1, u) and the next unit to (t, u + 1); the blank of the last frame
after the last unit ends the text. Where the alignment is to be monotonic (Tripathi et al. 2019), a frame gives a blank
or one unit: the next unit leads to (t + 1, u + 1), and the text ends with its last frame.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BLANK = 0
NEVER = -1e30  # the log of a probability of 0, such that a difference of two is still a number


def transducer_loss(blank: Tensor, label: Tensor, frames: Tensor, units: Tensor, monotonic: bool = False) -> Tensor:
    """Log-probabilities (B, T, W) of a blank and of the next unit, frames and units (B,) -> -log p(text) (B,), float32.

    What lies beyond an item's frames and units, NaN included, does not matter and gets a gradient of 0, the last column
    of ``label`` among it. An item without frames, or with fewer than units where it is monotonic, has a loss of 0.
    """
    frames_B11, units_B11 = frames[:, None, None], units[:, None, None]
    time, place = (torch.arange(size, device=blank.device) for size in blank.shape[1:])
    real = (time[:, None] < frames_B11) & (place <= units_B11)
    blank = blank.float().masked_fill(~real, NEVER)
    label = label.float().masked_fill(~real | (place == units_B11), NEVER)
    impossible = (frames == 0) | ((units > frames) & monotonic)
    return Lattice.apply(blank, label, frames, units, monotonic).masked_fill(impossible, 0)


class Lattice(torch.autograd.Function):
    """``transducer_loss`` of log-probabilities that are NEVER outside; loops over anti-diagonals, all items at once.

    Every step leads from a diagonal to the next one. Of a monotonic alignment it does from a frame to the next one, so
    that N is T and nothing is skewed.

    Forward is the backward variable, beta, and keeps the odds of a blank against a unit on the paths that lead to the
    end. Backward follows them from the start: the share of all paths that pass a place, alpha times beta over the
    total, is a sum of two products. Neither needs a difference of large numbers, so float32 is enough: beta is kept
    relative to the largest of its diagonal.
    """

    @staticmethod
    def forward(ctx, blank: Tensor, label: Tensor, frames: Tensor, units: Tensor, monotonic: bool) -> Tensor:
        blank_NBW, label_NBW = ((x.transpose(0, 1) if monotonic else skewed(x)) for x in (blank, label))
        ends = frames if monotonic else frames + units
        diagonal = torch.arange(len(blank_NBW), device=blank.device)[:, None]
        beyond_NB = diagonal >= ends
        is_last = torch.arange(blank.shape[2], device=blank.device) == units[:, None]
        is_end_NBW = (diagonal + 1 == ends)[..., None] & is_last
        odds_NBW = blank.new_empty(blank_NBW.shape)
        tops_NB = blank.new_empty(blank_NBW.shape[:2])
        beta = blank.new_full((blank.shape[0], blank.shape[2] + 1), NEVER)  # of the next diagonal; one place more
        for n in reversed(range(len(blank_NBW))):
            beta[:, :-1].masked_fill_(is_end_NBW[n], 0)
            stay, go = blank_NBW[n] + beta[:, :-1], label_NBW[n] + beta[:, 1:]
            torch.sub(stay, go, out=odds_NBW[n])
            both = torch.logaddexp(stay, go)
            tops_NB[n] = both.amax(dim=1).masked_fill_(beyond_NB[n], 0)
            beta[:, :-1] = both.sub_(tops_NB[n, :, None])
        ctx.save_for_backward(odds_NBW)
        ctx.frames, ctx.monotonic = blank.shape[1], monotonic
        return -(tops_NB.sum(dim=0) + beta[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (odds_NBW,) = ctx.saved_tensors
        stay_NBW, go_NBW = odds_NBW.sigmoid(), odds_NBW.neg().sigmoid_()
        passing = torch.zeros_like(odds_NBW[0])
        passing[:, 0] = -grad
        for stay, go in zip(stay_NBW, go_NBW, strict=True):  # odds become gradients, in place
            stay *= passing
            go *= passing
            passing = stay.clone()
            passing[:, 1:] += go[:, :-1]
        if ctx.monotonic:
            return stay_NBW.transpose(0, 1), go_NBW.transpose(0, 1), None, None, None
        return unskewed(stay_NBW, ctx.frames), unskewed(go_NBW, ctx.frames), None, None, None


def skewed(x: Tensor) -> Tensor:
    """x (B, T, W) -> (N, B, W) whose row n holds the places with t + u = n, and NEVER where there is none.

    Rows of T numbers, made one longer than the N that are read at a time: each begins one further to the right.
    """
    frames, places = x.shape[1:]
    flat = F.pad(x.transpose(1, 2), (0, places), value=NEVER).flatten(1)[:, :-places]
    return flat.unflatten(1, (places, frames + places - 1)).permute(2, 0, 1).contiguous()


def unskewed(x_NBW: Tensor, frames: int) -> Tensor:
    """What ``skewed`` was given, (B, T, W)."""
    places = x_NBW.shape[2]
    flat = F.pad(x_NBW.permute(1, 2, 0).flatten(1), (0, places))
    return flat.unflatten(1, (places, len(x_NBW) + 1))[..., :frames].transpose(1, 2)


def lattice_entries(
    joint: Callable[[Tensor, Tensor], Tensor], encoder: Tensor, predictor: Tensor, following: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """What ``transducer_loss`` needs of joint(encoder (B, T, J), predictor (B, W, J)) = logits (B, T, W, V): no more.

    ``following`` (B, W) is the unit after each place, any below V where there is none. The logits are made for
    ``chunk`` frames at a time and made again for the gradient, so that never more of them exist.
    """

    def entries(part: Tensor) -> tuple[Tensor, Tensor]:
        logits = joint(part, predictor).float()
        index = following[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        total = logits.logsumexp(dim=-1)
        return logits[..., BLANK] - total, logits.gather(-1, index)[..., 0] - total

    found = [
        checkpoint(entries, part, use_reentrant=False, preserve_rng_state=False) for part in encoder.split(chunk, 1)
    ]
    blank, label = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return blank, label
