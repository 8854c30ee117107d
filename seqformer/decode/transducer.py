"""Searches for the text of a transducer.

Both take ``joint(encoder (..., J), predictor (..., J))`` -> logits (..., V), and ``predict(units (N, U), state)`` ->
(N, U, J) after each unit and the state (N, ...) for the next call, None at the start.
"""

import math
from collections.abc import Callable
from heapq import nlargest
from typing import NamedTuple

import torch
from torch import Tensor

from seqformer.decode.align import Span

BLANK = 0
WINDOW = 8  # frames looked at together: what follows a text is the same for all of them until a unit is found
Joint = Callable[[Tensor, Tensor], Tensor]
Predict = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
Past = tuple[Tensor, Tensor]  # what a predictor says of the units so far, and its state
Score = Callable[[tuple[int, ...], int], float]


def greedy(joint: Joint, predict: Predict, encoder: Tensor, lengths: Tensor, max_symbols: int) -> list[list[int]]:
    """The best of blank and units, again and again: encoder (B, T, J), lengths (B,) -> units of each item.

    All items advance at once, each over the blanks to its next unit (Bataev et al. 2024, label looping). A frame gives
    at most ``max_symbols`` units.
    """
    found, _ = greedy_spans(joint, predict, encoder, lengths, max_symbols)
    return [[span.unit for span in spans] for spans in found]


def greedy_spans(
    joint: Joint, predict: Predict, encoder: Tensor, lengths: Tensor, max_symbols: int, past: Past | None = None
) -> tuple[list[list[Span]], Past]:
    """``greedy`` with the frame and the probability of each unit, and what a search in the next frames goes on from.

    A search over frames that come in pieces, each with the ``past`` of the one before, finds what one over all does.
    """
    at, run, found = torch.zeros_like(lengths), torch.zeros_like(lengths), []  # frame read, units of it so far
    after, state = predict(torch.full_like(lengths, BLANK)[:, None], None) if past is None else past
    rows, ahead = (torch.arange(size, device=encoder.device) for size in (len(lengths), WINDOW))
    while bool((at < lengths).any()):
        place = at[:, None] + ahead
        logits = joint(encoder[rows[:, None], place.clamp(max=encoder.shape[1] - 1)], after)
        best = logits.argmax(dim=-1)
        is_unit = (best != BLANK) & (place < lengths[:, None])
        emits, first = is_unit.any(dim=1), is_unit.int().argmax(dim=1)
        skipped = torch.where(emits, first, WINDOW)
        unit = best.gather(1, first[:, None])[:, 0].masked_fill(~emits, BLANK)
        found.append((unit, at + skipped, logits[rows, first].float().softmax(dim=-1)[rows, unit]))
        run = run.masked_fill(skipped > 0, 0) + emits
        at, run = at + skipped + (run == max_symbols), run.masked_fill(run == max_symbols, 0)
        new_after, new_state = predict(unit[:, None], state)
        after = torch.where(emits[:, None, None], new_after, after)
        state = torch.where(emits.reshape(-1, *[1] * (state.dim() - 1)), new_state, state)
    columns = [torch.stack(parts, dim=1).tolist() for parts in zip(*found, strict=True)] or [[[]] * len(lengths)] * 3
    return [
        [Span(unit, frame, frame + 1, p) for unit, frame, p in zip(*item, strict=True) if unit != BLANK]
        for item in zip(*columns, strict=True)
    ], (after, state)


class GreedyReader:
    """Greedy search in one recording that comes piece by piece: ``found`` are its units so far, each in its frame."""

    def __init__(self, joint: Joint, predict: Predict, max_symbols: int):
        self.joint, self.predict, self.max_symbols = joint, predict, max_symbols
        self.found: list[Span] = []
        self.frames, self.past = 0, None

    @torch.no_grad()
    def push(self, encoder: Tensor) -> None:
        """Read the next frames (T, J)."""
        lengths = torch.tensor([len(encoder)], device=encoder.device)
        (spans,), self.past = greedy_spans(
            self.joint, self.predict, encoder[None], lengths, self.max_symbols, self.past
        )
        self.found += [span._replace(start=span.start + self.frames, end=span.end + self.frames) for span in spans]
        self.frames += len(encoder)


class Hypothesis(NamedTuple):
    """A text, its log-probability summed over alignments, the sum of its scores, and what the predictor says of it."""

    units: tuple[int, ...]
    log_p: float
    score: float
    after: Tensor  # (1, J)
    state: Tensor

    @property
    def total(self) -> float:
        return self.log_p + self.score


def beam_search(
    joint: Joint, predict: Predict, encoder: Tensor, beam: int, max_symbols: int, score: Score | None = None
) -> list[tuple[list[int], float]]:
    """The best texts of one item, at most ``beam``, best first, with their totals: encoder (T, J).

    Frame by frame, with the probabilities of equal texts added. ``score(units, unit)`` is added to the log-probability
    of a text whenever a unit is put behind others: a language model, weighted, or a bonus for length. As long as the
    beam drops nothing, a total is exactly the log of the summed probability of the text's alignments in which no frame
    gives more than ``max_symbols`` units, plus its scores.
    """
    after, state = predict(torch.full((1, 1), BLANK, device=encoder.device), None)
    found = [Hypothesis((), 0.0, 0.0, after[0], state[0])]
    for frame in encoder:
        ended: dict[tuple[int, ...], Hypothesis] = {}
        for symbols in range(max_symbols + 1):
            logits = joint(frame, torch.cat([one.after for one in found]))
            log_p_NV = logits.float().log_softmax(dim=-1)
            for one, blank in zip(found, log_p_NV[:, BLANK].tolist(), strict=True):
                before = ended[one.units].log_p if one.units in ended else -math.inf
                ended[one.units] = one._replace(log_p=_log_sum(before, one.log_p + blank))
            if symbols < max_symbols:
                found = _extended(found, log_p_NV, predict, beam, score)
        found = nlargest(beam, ended.values(), key=lambda one: one.total)
    return [(list(one.units), one.total) for one in found]


def _extended(
    found: list[Hypothesis], log_p_NV: Tensor, predict: Predict, beam: int, score: Score | None
) -> list[Hypothesis]:
    """The best of all texts with one unit more."""
    log_p_NV = log_p_NV.index_fill(1, log_p_NV.new_tensor([BLANK], dtype=torch.int64), -math.inf)
    log_ps, units = (side.tolist() for side in log_p_NV.topk(min(beam, log_p_NV.shape[1] - 1), dim=1))
    longer = [
        one._replace(
            units=(*one.units, unit),
            log_p=one.log_p + log_p,
            score=one.score + (score(one.units, unit) if score else 0.0),
        )
        for one, row, row_units in zip(found, log_ps, units, strict=True)
        for log_p, unit in zip(row, row_units, strict=True)
    ]
    longer = nlargest(beam, longer, key=lambda one: one.total)
    last = torch.tensor([[one.units[-1]] for one in longer], device=log_p_NV.device)
    afters, states = predict(last, torch.stack([one.state for one in longer]))
    return [one._replace(after=afters[row], state=states[row]) for row, one in enumerate(longer)]


def _log_sum(a: float, b: float) -> float:
    """log(e^a + e^b) of finite b."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
