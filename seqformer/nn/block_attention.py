"""Transformer-XL attention on a CPU, a block of queries at a time: no T x T scores, and no 2T - 1 position scores each.

A block of N queries meets only T + N - 1 of the 2T - 1 distances, or as many as a limited context has, and what is
computed for it stays in the cache. The gradient is written out and computes the weights again.

Axes: B batch, T frames, H heads, K head width, R = 2T - 1 distances, N queries of a block, M keys it may look at.
"""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from seqformer.nn.mask import lengths_of
from seqformer.nn.paths import fast_on_cpu

Context = tuple[int, int] | None  # frames before and after a query, -1 for no limit
MOST, SCORES = 128, 2**18  # queries of a block, and their scores, about: a MB
FEWEST = 96  # frames from which blocks are faster than whole batches
KEPT = 512  # frames up to which weights are kept for backward, not computed again


def fast_in_blocks(q: Tensor) -> bool:
    """Whether queries (B, T, H, K) are best taken in blocks."""
    # The path first: a graph that is being traced must not depend on the number of frames.
    return fast_on_cpu(q) and q.shape[1] >= FEWEST and q.dtype in (torch.float32, torch.float64)


def attend_in_blocks(
    q: Tensor, k: Tensor, value: Tensor, position: Tensor, u: Tensor, v: Tensor, mask: Tensor, context: Context
) -> Tensor:
    """softmax(((q + u)·k + (q + v)·P(i - j)) / sqrt(K)) values, zeros for padded frames.

    q, k, value (B, T, H, K), position P (R, H, K), u and v (H, K), mask (B, T) -> (B, T, H, K).
    """
    keep = torch.is_grad_enabled() and q.shape[1] <= KEPT
    blocks = blocks_of(lengths_of(mask).tolist(), q.shape[2], context)
    return BlockAttention.apply(q, k, value, position, u, v, blocks, keep)


@dataclass(frozen=True)
class Block:
    """Queries [first, last) of an item and the keys [left, right) that any of them may look at."""

    item: int
    first: int
    last: int
    left: int
    right: int
    context: Context

    def distances(self, frames: int) -> slice:
        """The rows of a table of the distances frames - 1 ... -(frames - 1) that the block meets."""
        return slice(frames - self.last + self.left, frames - self.first + self.right - 1)

    def hidden(self) -> Tensor | None:
        """True where one of the queries may not look at one of the keys, (N, M); None where all may at all."""
        if self.context is None:
            return None
        distance = torch.arange(self.left, self.right) - torch.arange(self.first, self.last)[:, None]
        before, after = (frames if frames >= 0 else distance.numel() for frames in self.context)
        return (distance < -before) | (distance > after)


def blocks_of(lengths: list[int], heads: int, context: Context) -> list[Block]:
    """The blocks of a batch of items of so many frames; padded frames are in none."""
    found = []
    for item, frames in enumerate(lengths):
        before, after = (frames if limit < 0 else limit for limit in context or (-1, -1))
        size = max(16, min(MOST, SCORES // (heads * max(1, min(frames, before + after + 1)))))
        for first in range(0, frames, size):
            last = min(frames, first + size)
            found.append(Block(item, first, last, max(0, first - before), min(frames, last + after), context))
    return found


class BlockAttention(torch.autograd.Function):
    """See ``attend_in_blocks``; ``keep`` the weights for backward."""

    @staticmethod
    def forward(ctx, q, k, value, position, u, v, blocks: list[Block], keep: bool) -> Tensor:
        ctx.save_for_backward(q, k, value, position, u, v)
        ctx.blocks, ctx.kept, out = blocks, [], q.new_zeros(q.shape)
        for block in blocks:
            found = weight_HNM, _, _ = _weights(block, q, k, position, u, v)
            if keep:
                ctx.kept.append(found)
            mean_HNK = torch.bmm(weight_HNM, _keys(block, value))
            out[block.item, block.first : block.last] = mean_HNK.transpose(0, 1)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, value, position, u, v = ctx.saved_tensors
        # Heads first: what is added to must lie without gaps, or torch multiplies head by head.
        to_q, to_k, to_value = (q.new_zeros(len(q), q.shape[2], q.shape[1], q.shape[3]) for _ in range(3))
        to_position = q.new_zeros(q.shape[2], len(position), q.shape[3])
        to_u, to_v, factor = torch.zeros_like(u), torch.zeros_like(v), q.shape[-1] ** -0.5
        for block, found in zip_longest(ctx.blocks, ctx.kept):
            weight_HNM, content_HNK, relative_HNK = found or _weights(block, q, k, position, u, v)
            keys, rows = slice(block.left, block.right), block.distances(q.shape[1])
            grad_HNK = grad[block.item, block.first : block.last].transpose(0, 1)
            to_value[block.item, :, keys].baddbmm_(weight_HNM.mT, grad_HNK)
            slope_HNM = torch.bmm(grad_HNK, _keys(block, value).mT)
            slope_HNM = torch._softmax_backward_data(slope_HNM, weight_HNM, -1, slope_HNM.dtype)
            to_k[block.item, :, keys].baddbmm_(slope_HNM.mT, content_HNK)
            from_content_HNK = torch.bmm(slope_HNM, _keys(block, k))
            # Back to scores of distances: those of the pairs of this block, and zeros for the others.
            N, M = slope_HNM.shape[1:]
            slope_HNR = slope_HNM.new_zeros(len(slope_HNM), N, N + M - 1)
            _shifted(slope_HNR, N, M).copy_(slope_HNM)
            to_position[:, rows].baddbmm_(slope_HNR.mT, relative_HNK)
            from_position_HNK = torch.bmm(slope_HNR, position[rows].transpose(0, 1))
            to_u += from_content_HNK.sum(dim=1) * factor
            to_v += from_position_HNK.sum(dim=1) * factor
            to_q[block.item, :, block.first : block.last] = from_content_HNK.add_(from_position_HNK).mul_(factor)
        to_frames = (x.transpose(1, 2) for x in (to_q, to_k, to_value))
        return *to_frames, to_position.transpose(0, 1), to_u, to_v, None, None


def _weights(
    block: Block, q: Tensor, k: Tensor, position: Tensor, u: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block the weights (H, N, M), and (q + u) / sqrt(K) and (q + v) / sqrt(K), (H, N, K)."""
    query, factor = q[block.item, block.first : block.last], q.shape[-1] ** -0.5
    content_HNK, relative_HNK = (((query + one) * factor).transpose(0, 1) for one in (u, v))
    rows = block.distances(q.shape[1])
    score_HNR = torch.bmm(relative_HNK, position[rows].permute(1, 2, 0))
    shifted_HNM = _shifted(score_HNR, block.last - block.first, block.right - block.left)
    score_HNM = torch.baddbmm(shifted_HNM, content_HNK, _keys(block, k).mT)
    hidden = block.hidden()
    if hidden is not None:
        score_HNM.masked_fill_(hidden, -torch.inf)
    return score_HNM.softmax(dim=-1), content_HNK, relative_HNK


def _keys(block: Block, x: Tensor) -> Tensor:
    """The keys of a block, or values, (B, T, H, K) -> (H, M, K), a view."""
    return x[block.item, block.left : block.right].transpose(0, 1)


def _shifted(score_HNR: Tensor, queries: int, keys: int) -> Tensor:
    """Scores against distances, of the last query and the first key first, -> against keys (H, N, M): a view.

    Query i and key j meet at column N - 1 - i + j, so a row of the view is one column less than a row of the scores.
    """
    H, N, R = score_HNR.shape
    return score_HNR.as_strided((H, queries, keys), (N * R, R - 1, 1), queries - 1)
