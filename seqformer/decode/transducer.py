"""Searches for the text of a transducer.

Both take ``joint(encoder (..., J), predictor (..., J))`` -> logits (..., V), and ``predict(units (N, U), state)`` ->
(N, U, J) after each unit and the state (N, ...) for the next call, None at the start.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from typing import NamedTuple

import torch
from torch import Tensor

from seqformer.decode.align import Span

BLANK = 0
BEHIND = 6.0  # natural logs behind the last of a full beam, a text is not followed through a frame's further units
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
    joint: Joint,
    predict: Predict,
    encoders: Sequence[Tensor],
    beam: int,
    max_symbols: int,
    score: Score | None = None,
    monotonic: bool = False,
) -> list[list[Hypothesis]]:
    """The best texts of each item, at most ``beam``, best first: encoders (T, J), all items advancing at once.

    Frame by frame, with the probabilities of equal texts added. ``score(units, unit)`` is added to the log-probability
    of a text whenever a unit is put behind others: a language model, weighted, or a bonus for length. As long as the
    beam drops nothing, a total is exactly the log of the summed probability of the text's alignments in which no frame
    gives more than ``max_symbols`` units, plus its scores. ``monotonic``: a frame gives a blank or one unit.
    """
    if not len(encoders):
        return []
    after, state = predict(torch.full((1, 1), BLANK, device=encoders[0].device), None)
    found = [[Hypothesis((), 0.0, 0.0, after[0], state[0])] for _ in encoders]
    for t in range(max(map(len, encoders))):
        now = {item: found[item] for item, encoder in enumerate(encoders) if t < len(encoder)}
        ended: dict[int, dict[tuple[int, ...], Hypothesis]] = {item: {} for item in now}
        rounds = 1 if monotonic else max_symbols + 1
        for symbols in range(rounds):
            flat = [(item, one) for item, some in now.items() for one in some]
            if not flat:
                break
            frames = torch.stack([encoders[item][t] for item, _ in flat])
            log_p_NV = joint(frames, torch.cat([one.after for _, one in flat])).float().log_softmax(dim=-1)
            for (item, one), blank in zip(flat, log_p_NV[:, BLANK].tolist(), strict=True):
                _end(ended[item], one._replace(log_p=one.log_p + blank))
            if monotonic or symbols + 1 < rounds:
                now = _extended(flat, log_p_NV, predict, beam, score, ended)
        if monotonic:  # the frame is over with the unit
            for item, some in now.items():
                for one in some:
                    _end(ended[item], one)
        for item, texts in ended.items():
            found[item] = nlargest(beam, texts.values(), key=lambda one: one.total)
    return found


def _end(ended: dict[tuple[int, ...], Hypothesis], one: Hypothesis) -> None:
    """Keep a text for the next frame, added to the equal one that is kept already."""
    before = ended[one.units].log_p if one.units in ended else -math.inf
    ended[one.units] = one._replace(log_p=_log_sum(before, one.log_p))


def _extended(
    flat: list[tuple[int, Hypothesis]],
    log_p_NV: Tensor,
    predict: Predict,
    beam: int,
    score: Score | None,
    ended: dict[int, dict[tuple[int, ...], Hypothesis]],
) -> dict[int, list[Hypothesis]]:
    """Of each item the best of all texts with one unit more, those with a chance to be kept."""
    log_p_NV = log_p_NV.index_fill(1, log_p_NV.new_tensor([BLANK], dtype=torch.int64), -math.inf)
    log_ps, units = (side.tolist() for side in log_p_NV.topk(min(beam, log_p_NV.shape[1] - 1), dim=1))
    longer: dict[int, list[Hypothesis]] = {item: [] for item in ended}
    least = {item: _least(texts.values(), beam) for item, texts in ended.items()}
    for (item, one), row, row_units in zip(flat, log_ps, units, strict=True):
        for log_p, unit in zip(row, row_units, strict=True):
            if one.total + log_p >= least[item]:  # a language model is asked about no more
                more = score(one.units, unit) if score else 0.0
                text = one._replace(units=(*one.units, unit), log_p=one.log_p + log_p, score=one.score + more)
                longer[item] += [text] if text.total >= least[item] else []
    longer = {item: nlargest(beam, some, key=lambda one: one.total) for item, some in longer.items()}
    chosen = [one for some in longer.values() for one in some]
    if not chosen:
        return {}
    last = torch.tensor([[one.units[-1]] for one in chosen], device=log_p_NV.device)
    afters, states = predict(last, torch.stack([one.state for one in chosen]))
    rows = zip(afters.unbind(), states.unbind(), strict=True)
    return {item: [one._replace(after=after, state=state) for one, (after, state) in zip(some, rows, strict=False)]
            for item, some in longer.items()}  # fmt: skip


def _least(ended: Iterable[Hypothesis], beam: int) -> float:
    """The total below which a text has no chance any more."""
    kept = nlargest(beam, (one.total for one in ended))
    return kept[-1] - BEHIND if len(kept) == beam else -math.inf


def _log_sum(a: float, b: float) -> float:
    """log(e^a + e^b) of finite b."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
