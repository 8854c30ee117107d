"""Prefix beam search against every alignment; what a language model and hot words add, and what folds say together."""

import itertools

import numpy as np
import pytest

from seqformer.decode.prefix_beam import prefix_beam


def random_log_probs(*shape: int, seed: int = 0, sharp: float = 2.0) -> np.ndarray:
    logits = sharp * np.random.default_rng(seed).standard_normal(shape)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    merged = [unit for place, unit in enumerate(path) if place == 0 or unit != path[place - 1]]
    return tuple(unit for unit in merged if unit)


def every_text(log_probs: np.ndarray) -> list[dict[tuple[int, ...], float]]:
    """Of each item (B, T, V): {text: log of the summed probability of all V ** T paths that collapse to it}."""
    _, T, V = log_probs.shape
    paths = np.array(list(itertools.product(range(V), repeat=T)), dtype=int).reshape(V**T, T)
    texts = [collapsed(tuple(path)) for path in paths.tolist()]
    names = list(dict.fromkeys(texts))
    place = np.array([names.index(text) for text in texts])
    paths_log = log_probs[:, np.arange(T), paths].sum(axis=-1)
    return [dict(zip(names, np.log(np.bincount(place, np.exp(row))), strict=True)) for row in paths_log]


@pytest.mark.parametrize("T", range(6))
def test_a_wide_beam_is_an_exhaustive_search(T):
    """1,008 cases of up to 5 frames and 4 units: every text with its probability, the best first."""
    for V in (2, 3, 4):
        log_probs = random_log_probs(56, T, V, seed=10 * T + V)
        expected = every_text(log_probs)
        found = prefix_beam(log_probs, [T] * 56, beam=len(expected[0]), top=None, least=-np.inf)
        for hypotheses, texts in zip(found, expected, strict=True):
            assert {tuple(one.units): one.acoustic for one in hypotheses} == pytest.approx(texts, abs=1e-9)
            assert [one.score for one in hypotheses] == sorted((one.score for one in hypotheses), reverse=True)


def test_an_item_is_read_alike_alone_and_in_a_batch_whatever_pads_it():
    lengths, log_probs = [7, 30, 0, 18], random_log_probs(4, 30, 12, sharp=3)
    alone = [prefix_beam(log_probs[i : i + 1, :n], [n], beam=8)[0] for i, n in enumerate(lengths)]
    for i, n in enumerate(lengths):
        log_probs[i, n:] = np.nan
    with np.errstate(all="raise"):
        together = prefix_beam(log_probs, lengths, beam=8)
    for one, two in zip(alone, together, strict=True):
        assert [item.units for item in one] == [item.units for item in two]
        assert [item.score for item in one] == pytest.approx([item.score for item in two])
    assert together[2] == [([], 0.0, 0.0)]
