"""Hidden Markov states of units: their numbers, frames of an alignment, priors and scaled likelihoods.

State 0 is silence, and whatever else is no unit; unit u of a tokenizer, from 1, has a fixed number of states, passed
from left to right. There are no transition probabilities: a path is as good as its frames, and no frame may skip a
state. That is the hybrid of Bourlard and Morgan 1994, with units in place of tied triphones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqformer.decode.align import Span, viterbi

SILENCE = 0


class Topology(NamedTuple):
    """``vocab`` units, unit 0 (the blank) being none, of ``states`` states each."""

    vocab: int
    states: int

    @property
    def size(self) -> int:
        return 1 + (self.vocab - 1) * self.states

    def of(self, unit: int) -> range:
        """The states of a unit, in order."""
        return range(1 + (unit - 1) * self.states, 1 + unit * self.states)


def frame_states(
    spans: Sequence[Span], frames: int, topology: Topology, ratio: float = 1.0, reach: float = 0.0
) -> np.ndarray:
    """Spans of an alignment -> the state of each of ``frames`` frames, ``ratio`` of them to a frame of the alignment.

    CTC's spans are peaks: each grows by up to ``reach`` frames to both sides, to the middle of the gap at most where
    another is near. What is left is silence. A unit's span is split evenly among its states; one with fewer frames
    than states has only some of them. Raises ValueError when a frame of the alignment is none here.
    """
    if ratio < 1:
        raise ValueError(f"{ratio:g} frames for one of the alignment: expected 1 or more, or units are lost")
    found = np.full(frames, SILENCE)
    edges = np.array([(span.start, span.end) for span in spans], float).reshape(-1, 2) * ratio
    gaps = (edges[1:, 0] - edges[:-1, 1]) / 2
    before = np.concatenate([edges[:1, 0], gaps]).clip(0, reach)
    after = np.concatenate([gaps, frames - edges[-1:, 1]]).clip(0, reach)
    starts, ends = np.rint(edges[:, 0] - before).astype(int), np.rint(edges[:, 1] + after).astype(int).clip(max=frames)
    for span, start, end in zip(spans, starts, ends, strict=True):
        found[start:end] = topology.of(span.unit)[0] + split(end - start, topology.states)
    return found


def split(frames: int, states: int) -> np.ndarray:
    """Frames (frames,) shared evenly among 0, 1, ... states - 1."""
    return ((np.arange(frames) + 0.5) * states / max(frames, 1)).astype(int)


def stretch_states(states: np.ndarray, frames: int) -> np.ndarray:
    """States (T,) of a recording that was made longer or shorter: those of the nearest of its frames (frames,)."""
    if not len(states):
        return states
    return states[((np.arange(frames) + 0.5) * len(states) / max(frames, 1)).astype(int)]


def align_states(
    scores: np.ndarray, units: Sequence[int], begins: Sequence[bool], topology: Topology
) -> tuple[np.ndarray, float]:
    """scores (T, states) and a text's units -> the state of each frame on the best path, and its score.

    Silence may be before each unit that ``begins`` a word, and at the end. Raises ValueError when there are fewer
    frames than states.
    """
    states, skips = [], []  # that a path may come to a state from the one two before, over a silence left out
    for unit, new in zip(units, begins, strict=True):
        silent = new or not states
        states += [SILENCE] * silent + list(topology.of(unit))
        skips += [False] * silent + [silent and len(states) > topology.states + 1] + [False] * (topology.states - 1)
    if len(units) * topology.states > len(scores):
        raise ValueError(f"{len(units)} units of {topology.states} states do not fit into {len(scores)} frames")
    states, skips = np.array([*states, SILENCE]), np.array([*skips, False])
    path, score = viterbi(np.asarray(scores, np.float64), states, skips)
    return states[path], score


def log_priors(counts: np.ndarray) -> np.ndarray:
    """Frames (S,) of each state -> log of its share, each state counted once more, so that none has a share of 0."""
    return np.log((counts + 1) / (counts.sum() + len(counts)))


def scaled_likelihoods(log_probs: np.ndarray, log_prior: np.ndarray, prior_scale: float) -> np.ndarray:
    """log p(state | frame) (T, S) - prior_scale log p(state): log p(frame | state), but for what no state changes."""
    return log_probs - prior_scale * log_prior
