"""Prefix beam search against every alignment; what a language model and hot words add, and what folds say together."""

import itertools

import numpy as np
import pytest

from seqformer.data.text import Characters, Pieces, fit_tokenizer
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.fusion import Fusion
from seqformer.decode.prefix_beam import prefix_beam
from seqformer.lm.kneser_ney import train_kneser_ney


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


LETTERS = Characters("ab ")
CORPUS = ["a ab ba", "ab ab", "b a", "ba ab a", "bb a ab"]


def expected_gain(text: str, decoder: BeamDecoder) -> float:
    """Of a whole text, from its words: no prefix, no state."""
    gain = decoder.hot * sum(len(word) for word in text.split() if word in decoder.words)
    if decoder.model is None:
        return gain
    log_probs = decoder.model.log_probs(text)
    return gain + decoder.weight * sum(log_probs) + decoder.bonus * (len(log_probs) - 1)


DECODERS = [
    {"model": ("words", 2), "weight": 0.7, "bonus": 1.5},
    {"model": ("words", 3), "weight": 0.4, "bonus": -0.5, "words": ("ab", "bb"), "hot": 2.0},
    {"model": ("chars", 3), "weight": 1.2, "bonus": 0.8, "words": ("aba",), "hot": 3.0},
    {"words": ("ba", "b"), "hot": 1.0},
]


@pytest.mark.parametrize("changes", DECODERS, ids=str)
@pytest.mark.parametrize("rescore", [False, True])
def test_a_guided_search_orders_all_texts_by_what_is_said_of_whole_texts(changes, rescore):
    units, order = changes.get("model", (None, None))
    model = train_kneser_ney(CORPUS, order, units) if units else None
    log_probs = random_log_probs(20, 5, 4, seed=3)
    expected = every_text(log_probs)
    settings = {"beam": len(expected[0]), "top": None, "least": -np.inf, "rescore": rescore}
    decoder = BeamDecoder(**(changes | {"model": model} | settings))
    for hypotheses, texts in zip(decoder.hypotheses(log_probs, LETTERS), expected, strict=True):
        said = {text: p + expected_gain(LETTERS.decode(list(text)), decoder) for text, p in texts.items()}
        assert {tuple(one.units): one.score for one in hypotheses} == pytest.approx(said, abs=1e-9)
        assert tuple(hypotheses[0].units) == max(said, key=said.get)


def test_a_narrow_beam_asks_the_guide_for_all_that_could_have_been_kept():
    """The same texts are found where every extension is asked about."""

    class Eager(Fusion):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.most = np.full(len(self.spellings), 1e9)

    model, log_probs = train_kneser_ney(CORPUS, 2), random_log_probs(10, 40, 4, seed=4, sharp=1.0)
    given = (LETTERS.spellings(), model, 0.6, 1.0, ("ab",), 1.0)
    lazy, eager = (prefix_beam(log_probs, [40] * 10, beam=5, guide=kind(*given)) for kind in (Fusion, Eager))
    for one, two in zip(lazy, eager, strict=True):
        assert [item.units for item in one] == [item.units for item in two]


@pytest.mark.parametrize(
    ("text", "earned"),
    [("new york", 8), ("new", 3), ("new yorks", 3), ("newly", 0), ("my new  york now", 8), ("york", 0), ("a bonn", 4),
     ("bon", 0), ("abonn", 0), ("new bonn", 7), ("", 0), (" new ", 3)],
)  # fmt: skip
def test_hot_words_lend_as_they_are_read_and_take_back_what_is_not_completed(text, earned):
    tokenizer = Characters("abceklmnorswyt ")
    fusion = Fusion(tokenizer.spellings(), words=("new york", "new", "bonn"), hot=1.0)
    state, total = fusion.start(), 0.0
    for unit in tokenizer.encode(text):
        gain, state = fusion.extend(state, unit)
        total += gain
    assert total + fusion.finish(state) == pytest.approx(earned)


@pytest.mark.parametrize("kind", ["chars", "words", "bpe", "pieces"])
def test_units_are_spelled_as_the_tokenizer_reads_them(kind):
    texts = ["the cat sat on the mat", "why not now", "a dog's life"]
    if kind == "bpe":
        pytest.importorskip("sentencepiece", reason="extra 'asr' is not installed")
    tokenizer = Pieces(["▁the", "▁c", "at", "▁"]) if kind == "pieces" else fit_tokenizer(kind, texts, 40, None)
    spellings = tokenizer.spellings()
    assert len(spellings) == tokenizer.size and spellings[0] == ""
    for units in np.random.default_rng(0).integers(1, tokenizer.size, size=(30, 6)).tolist():
        assert "".join(spellings[unit] for unit in units).split() == tokenizer.decode(units).split()
