"""State-level minimum Bayes risk training (Kingsbury 2009; Vesely et al. 2013) over a dense bigram of units.

The graph is small enough to be a matrix, so no lattices: every path of T frames is in it. Axes: B batch, T frames,
V units, S states.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqformer.nn.losses import LEAST, scored_classes, shares
from seqformer.nn.precision import no_autocast

NEVER = -1e30  # the log of a probability of 0, such that a difference of two is still a number
BACK_OFF = 1.0  # pairs' worth of the shares of all units that is mixed into what follows a unit


class Graph(NamedTuple):
    """Logs of: a path begins in a state (S,), goes from one (row) to another (S, S), ends in one (S,)."""

    start: Tensor
    step: Tensor
    end: Tensor


def expected_gain(scores: Tensor, gain: Tensor, mask: Tensor, graph: Graph) -> Tensor:
    """Expected sum over frames of the gain of the path's state: scores, gain (B, T, S), mask (B, T) -> (B,).

    A path is as probable as the exponential of its scores and those of the graph is large. Gradients go to the scores
    alone. Frames that are not real may hold anything; an item without any gains 0.
    """
    scores, gain = (x.masked_fill(~mask[..., None], 0) for x in (scores, gain))
    return ExpectedGain.apply(scores, gain, mask, *graph)


def wrong_frames(scores: Tensor, targets: Tensor, mask: Tensor, graph: Graph, weight: Tensor | None = None) -> Tensor:
    """Weighted mean over scored frames of the probability that a path is in a wrong state; see ``expected_gain``.

    Scores (B, T, S), mask (B, T), targets and weight as class_loss takes them; 0 where nothing is scored.
    """
    goal, scored = scored_classes(targets, mask)
    share = shares(scored, weight)
    goal = goal if goal.is_floating_point() else F.one_hot(goal, scores.shape[-1])
    right = expected_gain(scores, goal * share[..., None], mask, graph)
    return (share.sum() - right.sum()) / share.sum().clamp(min=LEAST)


class ExpectedGain(torch.autograd.Function):
    """``expected_gain`` of zeros outside; loops over frames, all items and states at once.

    Beside the log-probability of all paths to a state goes what they have gained (Povey's approximate accuracies, here
    of all paths): d gain / d score(t, s) = p(s at t) (gain of the paths through s at t - gain of all paths). Both are
    kept relative to their frame's largest and mean, so that float32 is enough for any number of frames. A product of
    matrices does the sum over states; what it loses is 1e-38 of the largest, from which every unit can be reached too.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, gain: Tensor, mask: Tensor, start: Tensor, step: Tensor, end: Tensor) -> Tensor:
        with no_autocast(scores):
            start, move, end = start.to(scores), step.to(scores).exp(), end.to(scores)
            log_p, gained = _before(scores, gain, start, move)
            slope, total = torch.zeros_like(scores), scores.new_zeros(len(scores))
            to_go, gain_to_go = end.expand_as(scores[:, 0]) if scores.shape[1] else end, scores.new_zeros(())
            last, none = to_go, gain_to_go
            for t in reversed(range(scores.shape[1])):
                is_real = mask[:, t, None]
                share = (log_p[:, t] + to_go).softmax(dim=1) * is_real
                passing = gained[:, t] + gain_to_go
                slope[:, t] = share * (passing - (share * passing).sum(dim=1, keepdim=True))
                total += (share * gain[:, t]).sum(dim=1)
                to_go, gain_to_go = _moved(scores[:, t] + to_go, gain[:, t] + gain_to_go, move.T)
                # Before the first padded frame, seen from the end, nothing is behind: the path ends there.
                to_go, gain_to_go = torch.where(is_real, to_go, last), torch.where(is_real, gain_to_go, none)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None, None], None, None, None, None, None


def _before(scores: Tensor, gain: Tensor, start: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """Of the paths to each state in each frame: log-probabilities and gains so far, both (B, T, S) and relative."""
    log_p, gained = torch.empty_like(scores), torch.empty_like(scores)
    arrived, so_far = start, torch.zeros_like(start)
    for t in range(scores.shape[1]):
        log_p[:, t], gained[:, t] = arrived + scores[:, t], so_far + gain[:, t]
        arrived, so_far = _moved(log_p[:, t], gained[:, t], move)
    return log_p, gained


def _moved(log_p: Tensor, gained: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """One step along ``move`` (from, to): of states (B, S) to those reached, the same two, made relative."""
    p = (log_p - log_p.amax(dim=1, keepdim=True)).exp()
    gained = gained - (p * gained).sum(dim=1, keepdim=True) / p.sum(dim=1, keepdim=True)
    total, weighted = torch.cat([p, p * gained]).matmul(move).chunk(2)
    reached = total > 0
    return (
        torch.where(reached, total, 1).log().masked_fill(~reached, NEVER),
        (weighted / torch.where(reached, total, 1)).masked_fill(~reached, 0),
    )


class Bigram(nn.Module):
    """Which unit follows which, as ``fit`` counts it; the buffers are no part of a checkpoint, for training alone.

    ``table`` (V + 1, V + 1): log p(column | row), the last of both being the end of a sequence, and its start.
    ``shares`` (V,): the log of how often each unit is seen. Before ``fit`` all are alike.
    """

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab = vocab
        self.register_buffer("table", torch.full((vocab + 1, vocab + 1), -np.log(vocab + 1)), persistent=False)
        self.register_buffer("shares", torch.full((vocab,), -np.log(vocab)), persistent=False)

    def fit(self, sequences: Iterable[np.ndarray]) -> None:
        """Sequences of units, -1 where none is known, which breaks a sequence in two without an end between.

        Units in shares (n, V) count as the largest. The share of each unit, every one seen once more than it was, is
        mixed in, so that no probability is 0.
        """
        pairs = np.zeros((self.vocab + 1, self.vocab + 1))
        for sequence in sequences:
            units = largest(np.asarray(sequence))
            chain = np.concatenate([[self.vocab], units, [self.vocab]])
            known = (chain[:-1] >= 0) & (chain[1:] >= 0)
            np.add.at(pairs, (chain[:-1][known], chain[1:][known]), 1)
        seen = pairs.sum(axis=0) + 1
        share = seen / seen.sum()
        rows = (pairs + BACK_OFF * share) / (pairs.sum(axis=1, keepdims=True) + BACK_OFF)
        self.table.copy_(torch.from_numpy(np.log(rows)))
        self.shares.copy_(torch.from_numpy(np.log(seen[:-1] / seen[:-1].sum())))

    def graph(self) -> Graph:
        """A state for each unit, left for itself as for any other by the table: units of frames."""
        return Graph(self.table[-1, :-1], self.table[:-1, :-1], self.table[:-1, -1])

    def ctc_graph(self) -> tuple[Graph, Tensor]:
        """States of CTC (2 V - 1), and the unit that each emits (2 V - 1,), 0 the blank.

        State 0 is the blank before all units, u is in unit u, and V - 1 + u in the blank behind it. A unit costs what
        the table says, a repeat or a blank nothing.
        """
        vocab, device = self.vocab, self.table.device
        units = torch.arange(vocab, device=device)
        label, last = torch.cat([units, torch.zeros_like(units[1:])]), torch.cat([units, units[1:]])
        row, is_blank = last.masked_fill(last == 0, vocab), label == 0  # before all units the row is that of the start
        new = self.table[row][:, label]
        same = last[:, None] == last
        stays = same & (is_blank | ~is_blank[:, None])  # on in a unit, into the blank behind it, on in that
        step = new.masked_fill(is_blank & ~same, NEVER).masked_fill(stays, 0)
        start = self.table[-1][label].masked_fill(is_blank, NEVER)
        start[0] = 0
        return Graph(start, step, self.table[row, vocab]), label


def largest(units: np.ndarray) -> np.ndarray:
    """Units (n,) as they are, or of shares (n, V) the largest, -1 of those with a NaN."""
    if units.ndim == 1:
        return units.astype(np.int64)
    return np.where(np.isfinite(units).all(axis=1), np.nan_to_num(units).argmax(axis=1), -1)
