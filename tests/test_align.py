"""Forced alignment against every path of small cases; times of words, and the files they are written to."""

import itertools
import re

import numpy as np
import pytest

from seqformer.decode.align import Span, Word, align, ctm, textgrid, word_times


def random_log_probs(T: int, V: int, seed: int) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((T, V))
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def runs(path: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(unit, start, end) of each run of one unit other than the blank."""
    found, start = [], 0
    for unit, group in itertools.groupby(path):
        end = start + len(list(group))
        found += [(unit, start, end)] if unit else []
        start = end
    return found


@pytest.mark.parametrize("T", range(6))
def test_the_path_is_the_likeliest_of_all_that_give_the_text(T):
    """Every text that fits into the frames, 8 random cases of each."""
    paths = list(itertools.product(range(3), repeat=T))
    texts = {}
    for path in paths:
        texts.setdefault(tuple(unit for unit, _, _ in runs(path)), []).append(path)
    for seed, (text, ways) in itertools.product(range(8), texts.items()):
        log_probs = random_log_probs(T, 3, seed)
        scores = [log_probs[np.arange(T), list(path)].sum() for path in ways]
        best = runs(ways[int(np.argmax(scores))])
        spans, log_p = align(log_probs, text)
        assert log_p == pytest.approx(max(scores))
        assert [span[:3] for span in spans] == best
        for unit, start, end, posterior in spans:
            assert posterior == pytest.approx(np.exp(log_probs[start:end, unit]).mean())
    for text in itertools.product((1, 2), repeat=T):
        if text not in texts:
            with pytest.raises(ValueError, match=f"do not fit into {T} frames"):
                align(random_log_probs(T, 3, 0), text)


@pytest.mark.parametrize(
    ("spellings", "units"),
    [(["", "t", "o", " ", "b", "e"], [1, 2, 3, 4, 5]), (["", " t", "o", " ", "b", "e"], [1, 2, 3, 4, 5]),
     (["", " t", "o", "", " b", "e"], [1, 2, 3, 4, 5]), (["", "t", "o", "", "", " be"], [1, 2, 5])],
)  # fmt: skip
def test_words_are_timed_by_their_units(spellings, units):
    spans = [Span(unit, 3 * place, 3 * place + 2, 0.1 * unit) for place, unit in enumerate(units)]
    words = word_times(spans, spellings, 0.04)
    assert [word.text for word in words] == ["to", "be"]
    assert (words[0].start, words[0].end, words[0].confidence) == pytest.approx((0.0, 0.2, 0.15))
    last = [span for span in spans if "b" in spellings[span.unit] or "e" in spellings[span.unit]]
    assert (words[1].start, words[1].end) == pytest.approx((0.04 * last[0].start, 0.04 * last[-1].end))
    assert words[1].confidence == pytest.approx(np.mean([span.posterior for span in last]))


WORDS = [Word("to", 0.04, 0.2, 0.75), Word('"be"', 0.2, 0.31, 1.0), Word("or", 0.5, 0.52, 0.5)]


def test_ctm_lines():
    text = ctm({"one": WORDS[:1], "two": WORDS[1:]})
    assert text == 'one 1 0.040 0.160 to 0.7500\ntwo 1 0.200 0.110 "be" 1.0000\ntwo 1 0.500 0.020 or 0.5000\n'
    with pytest.raises(ValueError, match="'a b' is empty or holds a space"):
        ctm({"a b": WORDS})


@pytest.mark.parametrize("words", [WORDS, WORDS[:1], []])
def test_a_textgrid_covers_the_recording_without_gaps(words):
    text = textgrid(words, 0.9)
    starts, stops = ([float(x) for x in re.findall(rf" {{12}}{side} = (.*)\n", text)] for side in ("xmin", "xmax"))
    labels = [label.replace('""', '"') for label in re.findall(r' text = "(.*)"\n', text)]
    assert starts == [0.0, *stops[:-1]] and stops[-1] == 0.9 and len(labels) == len(starts)
    assert f"intervals: size = {len(labels)}\n" in text
    found = [(label, start, stop) for label, start, stop in zip(labels, starts, stops, strict=True) if label]
    assert found == [(word.text, word.start, word.end) for word in words]
