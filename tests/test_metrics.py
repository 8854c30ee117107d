"""Metrics against other implementations, brute force and the definition."""

import itertools
import math

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqformer.decode.consensus import consensus
from seqformer.metrics import accuracy, cer, macro_f1, mae, normalized_edit_similarity, wer, word_edits
from seqformer.registry import lookup, names

WORD = st.sampled_from(["a", "b", "the", "then", "cat", "über", "don't"])
TEXT = st.lists(WORD, max_size=7).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=6)
quick = settings(max_examples=100, deadline=None, derandomize=True)


def edits(first, second) -> int:
    """Edit distance by its recursion, without tables or shortcuts."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        edits(first[1:], second) + 1,
        edits(first, second[1:]) + 1,
        edits(first[1:], second[1:]) + (first[0] != second[0]),
    )


@quick
@given(PAIRS)
def test_error_rates_equal_jiwer(pairs):
    predictions, truth = map(list, zip(*pairs, strict=True))
    assert wer(predictions, truth) == pytest.approx(jiwer.wer(truth, predictions), abs=1e-12)
    assert cer(predictions, truth) == pytest.approx(jiwer.cer(truth, predictions), abs=1e-12)
    assert normalized_edit_similarity(predictions, truth) == pytest.approx(1 - cer(predictions, truth))


SHORT = st.text(st.sampled_from("ab c"), max_size=6)


@quick
@given(st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
def test_error_rates_equal_brute_force(pairs):
    predictions, truth = map(list, zip(*pairs, strict=True))
    for rate, parts in ((wer, str.split), (cer, list)):
        wrong = sum(edits(parts(one), parts(two)) for one, two in pairs)
        length = sum(len(parts(text)) for text in truth)
        assert rate(predictions, truth) == (wrong / length if length else math.inf if wrong else 0.0)
    for one, two in pairs:
        assert word_edits(one, two) == (edits(one.split(), two.split()), len(two.split()))


def test_rates_of_nothing():
    assert wer([], []) == cer([], []) == wer([""], [""]) == 0.0
    assert wer(["a"], [""]) == cer(["a"], [""]) == math.inf and wer([""], ["a b"]) == 1.0
    assert normalized_edit_similarity(["abc"], ["abd"]) == pytest.approx(2 / 3)
    assert normalized_edit_similarity(["abcdef"], ["x"]) == -5.0  # as the competition counts it
    with pytest.raises(ValueError, match="longer"):
        wer(["a"], ["a", "b"])


def f1_by_hand(predictions: list[int], truth: list[int]) -> float:
    scores = []
    for name in set(predictions) | set(truth):
        hits = sum(p == t == name for p, t in zip(predictions, truth, strict=True))
        scores.append(2 * hits / (predictions.count(name) + truth.count(name)))
    return sum(scores) / len(scores)


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_accuracy_and_f1_by_hand(pairs):
    predictions, truth = map(list, zip(*pairs, strict=True))
    assert accuracy(predictions, truth) == pytest.approx(np.mean([p == t for p, t in pairs]))
    assert macro_f1(predictions, truth) == pytest.approx(f1_by_hand(predictions, truth))
    one_hot = [np.eye(5)[p] for p in predictions]
    for score in (accuracy, macro_f1):
        assert score(one_hot, truth) == score(predictions, truth)
        # class -1 is not scored, whatever was predicted
        assert score([*predictions, 0, 3], [*truth, -1, -1]) == pytest.approx(score(predictions, truth))


def test_classification_of_nothing_and_of_names():
    for score in (accuracy, macro_f1):
        assert math.isnan(score([], [])) and math.isnan(score([1, 0], [-1, -1]))
        assert math.isnan(score(np.zeros((2, 3)), [-1, -1]))
        assert score(["a", "b"], ["a", "b"]) == 1.0
        for wrong in ([[0, 1], [0]], [np.zeros((3, 2)), [1]]):
            with pytest.raises(ValueError, match="predictions for 1 truths"):
                score(*wrong)


def test_mae():
    assert mae([1, 2, 4], [1, 4, 3]) == 1.0
    assert mae([[1.0], [2.0]], [2.0, 2.0]) == 0.5  # as a head with one output gives them
    assert mae([1, 2, 4], [1, float("nan"), 3]) == 0.5
    assert math.isnan(mae([1.0], [float("nan")])) and math.isnan(mae([], []))


def test_each_says_which_way_is_better():
    lower = {name for name in names("metric") if not lookup("metric", name).higher_is_better}
    assert {"wer", "cer", "mae"} <= lower and not {"accuracy", "macro_f1", "normalized_edit_similarity"} & lower


@quick
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_consensus_has_the_least_edits_to_all(texts):
    def risk(text):
        return sum(edits(text.split()[:5], other.split()[:5]) for other in short)

    short = [" ".join(text.split()[:5]) for text in texts]
    found = consensus(short)
    assert risk(found) == min(map(risk, short))
    assert found == next(text for text in short if risk(text) == risk(found))  # the first on a tie


def test_consensus_of_a_majority():
    for order in itertools.permutations(["a b c", "a b c", "a x c d"]):
        assert consensus(order) == "a b c"
