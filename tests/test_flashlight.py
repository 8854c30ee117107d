"""flashlight-text and KenLM against our own search and reader; what is refused with them, and without."""

import math
import sys

import numpy as np
import pytest
from test_prefix_beam import CORPUS, LETTERS, random_log_probs

from seqformer.cli.decoder import make_decoder
from seqformer.data.text import Characters, Pieces, fit_tokenizer
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError
from seqformer.lm import flashlight
from seqformer.lm.flashlight import Flashlight, read_lexicon
from seqformer.lm.kneser_ney import arpa_lines, train_kneser_ney

WIDE = {"beam": 1000, "top": None, "least": -np.inf}


@pytest.fixture
def installed():
    pytest.importorskip("flashlight.lib.text", reason="extra 'decode' is not installed")
    pytest.importorskip("kenlm", reason="extra 'decode' is not installed")


def joined(hypotheses, allowed: set[str] | None = None) -> dict[str, float]:
    """{text of allowed words: log of the summed exp of the scores of what only differs from it by spaces}."""
    found: dict[str, float] = {}
    for one in hypotheses:
        text = " ".join(LETTERS.decode(one.units).split())
        if allowed is None or set(text.split()) <= allowed:
            found[text] = np.logaddexp(found.get(text, -np.inf), one.score)
    return found


@pytest.mark.parametrize("units", ["words", "chars"])
@pytest.mark.parametrize("order", [2, 3])
def test_kenlm_reads_a_model_as_we_do(installed, units, order, tmp_path):
    import kenlm

    model = train_kneser_ney(CORPUS, order, units)
    lines = list(arpa_lines(model))
    (tmp_path / "lm.arpa").write_text("\n".join(lines[lines.index("\\data\\") :]) + "\n")
    theirs = kenlm.Model(str(tmp_path / "lm.arpa"))
    for text in [*CORPUS, "", "bb bb", "zz a", "a a a a b"]:
        said = math.log(10) * theirs.score(" ".join(model.tokens(text)))
        assert said == pytest.approx(sum(model.log_probs(text)), abs=1e-4)


def test_its_words_are_those_of_our_beam_among_texts_of_words(installed):
    """Bonus, weight and end of the text count alike; the words are those of the model, or of a lexicon."""
    model = train_kneser_ney(CORPUS, 2)
    words, log_probs = {word for text in CORPUS for word in text.split()}, random_log_probs(30, 5, 4, seed=5)
    ours = BeamDecoder(model, 0.7, 1.5, **WIDE)
    theirs = BeamDecoder(model, 0.7, 1.5, **WIDE, engine=Flashlight())
    for one, two in zip(ours.hypotheses(log_probs, LETTERS), theirs.hypotheses(log_probs, LETTERS), strict=True):
        expected = joined(one, words)
        assert LETTERS.decode(two[0].units) == max(expected, key=expected.get)
        assert joined(two) == pytest.approx(expected, abs=1e-4)


def test_without_a_lexicon_it_finds_what_our_beam_finds(installed):
    log_probs = random_log_probs(30, 6, 4, seed=6)
    ours, theirs = (
        BeamDecoder(**WIDE, engine=engine).hypotheses(log_probs, LETTERS) for engine in (None, Flashlight())
    )
    for one, two in zip(ours, theirs, strict=True):
        expected = {tuple(three.units): three.score for three in one}
        assert {tuple(three.units): three.score for three in two} == pytest.approx(expected, abs=1e-4)


def test_a_model_of_characters_says_the_same_of_texts_without_spaces_at_their_ends(installed):
    model, log_probs = train_kneser_ney(CORPUS, 3, "chars"), random_log_probs(30, 5, 4, seed=6)
    ours, theirs = (
        BeamDecoder(model, 0.4, **WIDE, engine=engine).hypotheses(log_probs, LETTERS) for engine in (None, Flashlight())
    )
    for one, two in zip(ours, theirs, strict=True):
        spelled = {"".join(LETTERS.spellings()[unit] for unit in three.units): three.score for three in one}
        same = {text: score for text, score in spelled.items() if " ".join(text.split()) == text}
        found = {"".join(LETTERS.spellings()[unit] for unit in three.units): three.score for three in two}
        assert len(same) > 20 and {text: found[text] for text in same} == pytest.approx(same, abs=1e-4)


def test_a_lexicon_of_pieces_is_spelled_by_the_tokenizer_or_as_it_says(installed, tmp_path):
    pytest.importorskip("sentencepiece", reason="extra 'asr' is not installed")
    tokenizer = fit_tokenizer("bpe", ["the cat sat on the mat", "why not now", "cats"], 30, None)
    log_probs = np.full((12, tokenizer.size), -9.0)
    log_probs[:, 0] = -0.01
    spelled = [tokenizer.encode(word) for word in ("the", "cat")]
    spellings = [spelling.replace(" ", "▁") for spelling in tokenizer.spellings()]
    for place, unit in enumerate([*spelled[0], *spelled[1]]):
        log_probs[2 * place, [0, unit]] = -9.0, -0.01
    for text in ("the\ncat\nmat\n", "mat\nthe\t" + " ".join(spellings[unit] for unit in spelled[0]) + "\ncat\n"):
        (tmp_path / "words").write_text(text)
        assert BeamDecoder(engine=Flashlight(tmp_path / "words")).texts([log_probs], tokenizer) == ["the cat"]
    (tmp_path / "words").write_text("mat\ncat\n")
    (text,) = BeamDecoder(engine=Flashlight(tmp_path / "words")).texts([log_probs], tokenizer)
    assert set(text.split()) <= {"mat", "cat"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("ab\nax\n", "line 2: word 'ax' holds 'x', which no unit of the run stands for"),
     ("ab\ta b\nba\tb x\n", "line 2: word 'ba' has unit 'x'; ")],
)  # fmt: skip
def test_a_word_with_an_unknown_unit_is_named(installed, tmp_path, text, wanted):
    (tmp_path / "words").write_text(text)
    with pytest.raises(InputError, match=wanted):
        BeamDecoder(engine=Flashlight(tmp_path / "words")).texts([random_log_probs(3, 4)], LETTERS)


def test_choices_that_do_not_go_together_are_refused(installed):
    chars, log_probs = train_kneser_ney(CORPUS, 2, "chars"), [random_log_probs(3, 4)]
    for given, tokenizer, wanted in [
        ({"words": ("ab",)}, LETTERS, "knows no hot words"),
        ({"model": chars, "bonus": 1.0}, LETTERS, "has none without a lexicon"),
        ({"model": train_kneser_ney(CORPUS, 1)}, LETTERS, "KenLM reads no model of 1-grams alone"),
        ({"model": chars}, Pieces(["▁a", "b", "ab"]), "has no '▁a', a unit of the run"),
    ]:
        with pytest.raises(InputError, match=wanted):
            BeamDecoder(engine=Flashlight(), **given).texts(log_probs, tokenizer)
    with pytest.raises(InputError, match="a transducer has a search of its own"):
        BeamDecoder(engine=Flashlight()).texts(log_probs, LETTERS, search=lambda *_: [])


def test_a_text_that_fits_no_word_is_empty(installed, tmp_path):
    (tmp_path / "words").write_text("abababab\n")
    decoder = BeamDecoder(engine=Flashlight(tmp_path / "words"))
    assert decoder.texts([random_log_probs(2, 3)], Characters("ab")) == [""]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a b\n", "line 1: found 'a b'"), ("a\n\nb\n", "line 2: the line is empty"), ("\n", "there is no word in it"),
     ("\ta\n", "line 1: found")],
)  # fmt: skip
def test_a_damaged_lexicon_names_its_line(tmp_path, text, wanted):
    (tmp_path / "words").write_text(text)
    with pytest.raises(InputError, match=wanted):
        read_lexicon(tmp_path / "words")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    monkeypatch.setitem(sys.modules, "flashlight", None)
    flashlight._flashlight.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'seqformer\[decode\]'"):
        make_decoder(None, None, None, None, None, 1.0, decoder="flashlight")
    flashlight._flashlight.cache_clear()
    with pytest.raises(InputError, match="expected beam, flashlight or flashlight:LEXICON"):
        make_decoder(None, None, None, None, None, 1.0, decoder="flash")
