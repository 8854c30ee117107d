"""CTC prefix beam search (Graves 2012; Hannun et al. 2014), over all items of a batch and all their prefixes at once.

A prefix is a text's beginning. Its probability is the sum over all alignments of it to the frames so far, kept in two
parts, ending in a blank or in its last unit, because only after a blank may the same unit come again. Prefixes are
known by a 64-bit hash of their units, so that one that was dropped and is found again is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

NEVER = -np.inf
ROOT, ORPHAN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0)  # hash of the empty prefix, and of what is above it


class Hypothesis(NamedTuple):
    """Units of a text, log of its probability by the frames alone, and with what a fusion adds: the order of a list."""

    units: list[int]
    acoustic: float
    score: float


class Guide(Protocol):
    """What adds to the score of a prefix, as a language model does. States are hashable."""

    most: np.ndarray  # (vocab,) no unit ever adds more than this
    kinds: np.ndarray  # (vocab,) whole numbers: after any state, units of one kind add the same

    def start(self): ...

    def extend(self, state, unit: int) -> tuple[float, object]:
        """What a unit adds after a state, and the state then."""

    def finish(self, state) -> float:
        """What the end of the text adds."""


def prefix_beam(
    log_probs: np.ndarray,
    lengths: Sequence[int],
    beam: int = 16,
    top: int | None = 20,
    least: float = -9.2,
    guide: Guide | None = None,
    blank: int = 0,
) -> list[list[Hypothesis]]:
    """log_probs (B, T, V), frames of each item -> up to ``beam`` texts of each item, the best first.

    A frame extends prefixes by its ``top`` most probable units (None: by all) of a log-probability of ``least`` at
    least. With a beam as wide as there are texts, and nothing pruned, the search is exhaustive. Raises ValueError when
    ``beam`` or ``top`` is below 1.
    """
    if beam < 1 or (top is not None and top < 1):
        raise ValueError(f"beam {beam} and top {top}: expected 1 or more")
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")  # so that those with frames left come first
    search = _Search(len(order), beam, guide, blank)
    log_probs = np.asarray(log_probs)[order].astype(np.float64)
    units, kept = _candidates(log_probs, top, least, blank)
    for frame in range(int(lengths.max(initial=0))):
        live = int((lengths > frame).sum())
        search.step(log_probs[:live, frame], units[:live, frame], kept[:live, frame])
    found = search.finish()
    return [found[place] for place in np.argsort(order)]


def _candidates(log_probs: np.ndarray, top: int | None, least: float, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """Units (B, T, n) that may extend a prefix in a frame, and their log-probabilities, -inf where too small."""
    free = log_probs.copy()
    free[..., blank] = NEVER
    count = max(1, min(top or free.shape[-1], free.shape[-1] - 1))
    units = np.argpartition(-free, count - 1, axis=-1)[..., :count]
    kept = np.take_along_axis(free, units, axis=-1)
    return units, np.where(kept >= least, kept, NEVER)


class _Search:
    """Prefixes (B, K) of each item, -inf where there are fewer, and how each came about."""

    def __init__(self, items: int, beam: int, guide: Guide | None, blank: int):
        shape = (items, beam)
        self.beam, self.guide, self.blank = beam, guide, blank
        self.in_blank, self.in_unit = np.full(shape, NEVER), np.full(shape, NEVER)
        self.in_blank[:, 0] = 0.0
        self.added = np.zeros(shape)  # by the guide
        self.last = np.full(shape, -1)
        self.hash, self.above = np.full(shape, ROOT), np.full(shape, ORPHAN)
        self.history: list[tuple[np.ndarray, np.ndarray]] = []  # of each frame: prefix before, and unit or -1
        self.state = np.zeros(shape, int)  # the guide's, a place in ``states``
        self.states = [guide.start()] if guide else []
        self.numbers = {state: number for number, state in enumerate(self.states)}
        self.gains: dict[int, float] = {}  # state and kind of unit, as one number -> what the guide adds
        self.after: dict[tuple[int, int], int] = {}  # (state, unit) -> the state then

    def step(self, log_probs: np.ndarray, units: np.ndarray, kept: np.ndarray) -> None:
        """One frame of the first items: log_probs (n, V), candidates (n, C)."""
        live, K = len(units), self.beam
        in_blank, in_unit, last, added = (a[:live] for a in (self.in_blank, self.in_unit, self.last, self.added))
        total = np.logaddexp(in_blank, in_unit)
        again = np.take_along_axis(log_probs, np.maximum(last, 0), axis=1)
        stay_blank = total + log_probs[:, self.blank, None]
        stay_unit = np.where(last >= 0, in_unit + again, NEVER)
        same = units[:, None, :] == last[:, :, None]  # (n, K, C)
        longer = np.where(same, in_blank[:, :, None], total[:, :, None]) + kept[:, None, :]
        # parent[n, i, j]: prefix j is prefix i and one unit. That extension is no new prefix: it flows into j.
        parent = (self.hash[:live, :, None] == self.above[:live, None, :]) & (total > NEVER)[:, None, :]
        parent &= (total > NEVER)[:, :, None]
        source, has = parent.argmax(axis=1), parent.any(axis=1)
        flow = np.where(np.take_along_axis(last, source, 1) == last, np.take_along_axis(in_blank, source, 1),
                        np.take_along_axis(total, source, 1)) + again  # fmt: skip
        stay_unit = np.logaddexp(stay_unit, np.where(has, flow, NEVER))
        longer[(parent.astype(np.float32) @ same.astype(np.float32)) > 0] = NEVER
        stay = np.logaddexp(stay_blank, stay_unit) + added
        scores = longer + added[:, :, None]
        gains = self._ask(scores, stay, units)
        scores = scores + gains
        choice = _best(np.concatenate([stay, scores.reshape(live, -1)], axis=1), K)
        self._keep(choice, stay_blank, stay_unit, longer, gains, units)

    def _ask(self, scores: np.ndarray, stay: np.ndarray, units: np.ndarray) -> np.ndarray:
        """What the guide adds to extensions (n, K, C), -inf where none may be kept: of these it is not asked."""
        if self.guide is None:
            return np.zeros(scores.shape)
        # The prefixes that are there are K already: a new one must beat the worst of them.
        hopeful = scores + self.guide.most[units][:, None, :] >= stay.min(axis=1)[:, None, None]
        gains = np.full(scores.shape, NEVER)
        where = np.nonzero(hopeful & (scores > NEVER))
        if len(where[0]):
            asked, most = units[where[0], where[2]], int(self.guide.kinds.max()) + 1
            codes = self.state[where[:2]] * most + self.guide.kinds[asked]
            codes, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
            for code, unit in zip(codes.tolist(), asked[first].tolist(), strict=True):
                if code not in self.gains:
                    self.gains[code] = self.guide.extend(self.states[code // most], unit)[0]
            gains[where] = np.array([self.gains[code] for code in codes.tolist()])[inverse]
        return gains

    def _move(self, state: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the guide's states after a unit each."""
        found = []
        for pair in zip(state.tolist(), unit.tolist(), strict=True):
            if pair not in self.after:
                after = self.guide.extend(self.states[pair[0]], pair[1])[1]
                self.after[pair] = self.numbers.setdefault(after, len(self.states))
                if self.after[pair] == len(self.states):
                    self.states.append(after)
            found.append(self.after[pair])
        return np.array(found, dtype=int)

    def _keep(self, choice, stay_blank, stay_unit, longer, gains, units) -> None:
        """Make the chosen (n, K) of the stays and extensions the prefixes."""
        live, K = choice.shape
        new, extension = choice >= K, np.maximum(choice - K, 0)
        before, place = np.where(new, extension // units.shape[1], choice), extension % units.shape[1]
        unit = np.where(new, np.take_along_axis(units, place, 1), -1)

        def pick(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, before, axis=1)

        def pick_extension(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values.reshape(live, -1), extension, axis=1)

        added = pick(self.added[:live]) + np.where(new, pick_extension(gains), 0.0)
        state = pick(self.state[:live])
        if self.guide is not None:
            there = new & np.isfinite(added)  # of a beam that is not full yet, some of the kept are none
            state[there] = self._move(state[there], unit[there])
        self.state[:live] = state
        self.in_blank[:live] = np.where(new, NEVER, pick(stay_blank))
        self.in_unit[:live] = np.where(new, pick_extension(longer), pick(stay_unit))
        self.added[:live] = np.where(np.isfinite(added), added, 0.0)
        own = pick(self.hash[:live])
        self.above[:live] = np.where(new, own, pick(self.above[:live]))
        self.hash[:live] = np.where(new, _mix(own, unit), own)
        self.last[:live] = np.where(new, unit, pick(self.last[:live]))
        self.history.append((before, unit))

    def finish(self) -> list[list[Hypothesis]]:
        """The texts of each item, sorted."""
        total, texts = np.logaddexp(self.in_blank, self.in_unit), self._texts()
        found = []
        for item, prefixes in enumerate(texts):
            hypotheses = []
            for place, units in enumerate(prefixes):
                if total[item, place] > NEVER:
                    acoustic, more = float(total[item, place]), float(self.added[item, place])
                    more += self.guide.finish(self.states[self.state[item, place]]) if self.guide else 0.0
                    hypotheses.append(Hypothesis(units, acoustic, acoustic + more))
            found.append(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score))
        return found

    def _texts(self) -> list[list[list[int]]]:
        """Units of every prefix, followed back through the frames."""
        items = len(self.last)
        place = np.tile(np.arange(self.beam), (items, 1))
        found: list[np.ndarray] = []
        for before, unit in reversed(self.history):
            live, now = len(before), np.full(place.shape, -1)
            now[:live] = np.take_along_axis(unit, place[:live], 1)
            place[:live] = np.take_along_axis(before, place[:live], 1)
            found.append(now)
        frames = np.stack(found[::-1], axis=-1) if found else np.empty((*place.shape, 0), int)
        return [[row[row >= 0].tolist() for row in prefixes] for prefixes in frames]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places (n, count) of the largest of each row."""
    return np.argpartition(-scores, count - 1, axis=1)[:, :count]


def _mix(above: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Hashes of prefixes one unit longer: two rounds of multiply and shift (splitmix64)."""
    mixed = above ^ (unit + 1).astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
