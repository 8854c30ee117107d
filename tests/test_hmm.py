"""States of units: their numbers, frames of an alignment, alignment by states against all paths, priors."""

import itertools

import numpy as np
import pytest

from seqformer.decode.align import Span
from seqformer.decode.hmm import (
    Topology,
    align_states,
    frame_states,
    log_priors,
    scaled_likelihoods,
    split,
    stretch_states,
)


@pytest.mark.parametrize("states", [1, 3])
def test_every_state_but_silence_is_one_units(states):
    topology = Topology(5, states)
    numbers = [state for unit in range(1, 5) for state in topology.of(unit)]
    assert numbers == list(range(1, topology.size)) and all(len(topology.of(unit)) == states for unit in range(1, 5))


SPANS = [Span(2, 1, 2, 0.9), Span(1, 3, 5, 0.9)]  # of 6 frames


@pytest.mark.parametrize(
    ("states", "ratio", "reach", "expected"),
    [
        (1, 1, 0, "020110"),
        (1, 2, 0, "002200111100"),
        (1, 2, 1, "022221111110"),
        (1, 2, 99, "222221111111"),
        (2, 2, 0, "003400112200"),
        (3, 2, 1, "045561122330"),
    ],
)
def test_spans_become_states_of_frames(states, ratio, reach, expected):
    found = frame_states(SPANS, 6 * ratio, Topology(3, states), ratio, reach)
    assert "".join(map(str, found)) == expected


def test_spans_at_another_frame_rate_and_none():
    assert frame_states(SPANS, 8, Topology(3, 1), 1.5).tolist() == [0, 0, 2, 0, 1, 1, 1, 1]
    assert frame_states([], 3, Topology(3, 1)).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"0.5 frames for one of the alignment"):
        frame_states(SPANS, 3, Topology(3, 1), 0.5)


@pytest.mark.parametrize(("frames", "states"), [*itertools.product(range(12), (1, 2, 3))])
def test_a_span_is_split_evenly_and_in_order(frames, states):
    found = split(frames, states)
    counts = np.bincount(found, minlength=states)
    assert sorted(found) == found.tolist() and len(counts) == states and np.ptp(counts) <= 1


def test_stretching_takes_the_nearest_frame():
    states = np.array([5, 6, 7])
    assert stretch_states(states, 3).tolist() == [5, 6, 7]
    assert stretch_states(states, 6).tolist() == [5, 5, 6, 6, 7, 7]
    assert stretch_states(np.repeat(states, 2), 3).tolist() == [5, 6, 7]
    assert stretch_states(np.array([], int), 3).tolist() == []


@pytest.mark.parametrize(
    ("units", "begins"), [([1, 2], [1, 0]), ([1, 2], [1, 1]), ([2, 2], [0, 1]), ([1], [1]), ([], [])]
)
def test_the_alignment_is_the_best_of_all_paths(units, begins):
    topology, rng = Topology(3, 2), np.random.default_rng(0)
    chain = [state for unit in units for state in topology.of(unit)]
    breaks = {0, len(chain)} | {2 * place for place, new in enumerate(begins) if new}  # where silence may be

    def passes(path: tuple[int, ...]) -> bool:
        """Whether a path passes the chain, with silence only where it may be."""
        at, before = 0, None
        for state in path:
            if state == 0 and at not in breaks:
                return False
            if state and (at == 0 or state != chain[at - 1] or before == 0):  # no stay: the next of the chain
                if at == len(chain) or state != chain[at]:
                    return False
                at += 1
            before = state
        return at == len(chain)

    for frames in range(max(1, len(chain)), 7):
        paths = np.array([path for path in itertools.product(range(5), repeat=frames) if passes(path)])
        for _ in range(5):
            scores = rng.standard_normal((frames, topology.size))
            found, score = align_states(scores, units, begins, topology)
            assert score == pytest.approx(scores[np.arange(frames), paths].sum(axis=1).max())
            assert score == pytest.approx(scores[np.arange(frames), found].sum()) and passes(tuple(found.tolist()))
    if units:
        with pytest.raises(ValueError, match="do not fit into 1 frames"):
            align_states(np.zeros((1, 5)), units, begins, topology)


def test_priors_are_shares_and_are_taken_off():
    log_prior = log_priors(np.array([6, 0, 1]))
    assert np.exp(log_prior) == pytest.approx([0.7, 0.1, 0.2])
    log_probs = np.log([[0.5, 0.25, 0.25]])
    assert np.exp(scaled_likelihoods(log_probs, log_prior, 1.0))[0] == pytest.approx([0.5 / 0.7, 2.5, 1.25])
    assert scaled_likelihoods(log_probs, log_prior, 0.0) == pytest.approx(log_probs)
