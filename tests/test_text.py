"""P3 and round trips: tokenizers give back any text of their training alphabet, and know nothing of validation rows."""

import json
import sys

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqformer import InputError
from seqformer.data.targets import Targets, fit_targets
from seqformer.data.text import BPE, Characters, Words, fit_tokenizer, load_tokenizer, unknown_symbols

pytest.importorskip("sentencepiece", reason="extra 'asr' is not installed")
TEXTS = [
    "the cat sat on the mat", "a dog's life", "why not now", "jump over the quick brown fox", "größe über alles",
    "naïve café", "zero one two three", "four five six seven", "eight nine ten", "vex my lazy bud",
]  # fmt: skip
KINDS = {"chars": None, "words": None, "bpe": 60}
TOKENIZERS = {kind: fit_tokenizer(kind, TEXTS, vocab, None) for kind, vocab in KINDS.items()}
LETTERS = sorted(set("".join(TEXTS)) - {" "})
quick = settings(max_examples=150, deadline=None, derandomize=True)


WORD = st.text(st.sampled_from(LETTERS), min_size=1, max_size=12)


@quick
@given(st.lists(WORD, max_size=8).map(" ".join))
def test_round_trip_of_any_text_of_known_letters(text):
    for kind in ("chars", "bpe"):
        units = TOKENIZERS[kind].encode(text)
        assert 0 not in units and all(0 < unit < TOKENIZERS[kind].size for unit in units)
        assert TOKENIZERS[kind].decode(units) == text


@quick
@given(st.lists(st.sampled_from(sorted(set(" ".join(TEXTS).split()))), max_size=10).map(" ".join))
def test_round_trip_of_known_words(text):
    tokenizer = TOKENIZERS["words"]
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) == len(text.split())


UNUSUAL = st.characters(exclude_characters="▁\x00", exclude_categories=("Z", "C"))  # spaces and control characters


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.text(UNUSUAL, min_size=1, max_size=8), min_size=1, max_size=6))
def test_tokenizers_fitted_on_any_script_give_it_back(words):
    text = " ".join(words)
    for kind in ("chars", "words"):
        tokenizer = fit_tokenizer(kind, [text], 0, None)
        assert tokenizer.decode(tokenizer.encode(text)) == text and 0 not in tokenizer.encode(text)
    bpe = fit_tokenizer("bpe", [text], len(set(text) | {" "}) + 1, None)
    assert bpe.decode(bpe.encode(text)) == text and 0 not in bpe.encode(text)


@quick
@given(st.text(max_size=30))
def test_any_text_encodes_and_the_rest_is_named(text):
    for tokenizer in TOKENIZERS.values():
        units, unknown = tokenizer.encode(text), unknown_symbols(tokenizer, text)
        assert all(0 <= unit < tokenizer.size for unit in units)
        if tokenizer is not TOKENIZERS["bpe"] or "▁" not in text:
            symbols = set(text.split() if tokenizer is TOKENIZERS["words"] else "".join(text.split()))
            assert set(unknown) <= symbols and len(set(unknown)) == len(unknown)
        decoded = tokenizer.decode(units)
        assert not any(symbol in decoded for symbol in unknown if symbol.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_and_loading_are_deterministic(kind):
    tokenizer = TOKENIZERS[kind]
    again = fit_tokenizer(kind, list(TEXTS), KINDS[kind], None)
    loaded = load_tokenizer(json.loads(json.dumps(tokenizer.state())))
    assert type(loaded) is type(tokenizer) and again.state() == loaded.state() == tokenizer.state()
    for text in (*TEXTS, "unknown ж"):
        assert loaded.encode(text) == again.encode(text) == tokenizer.encode(text)
    assert loaded.size == tokenizer.size


def pieces(targets: Targets) -> list[str]:
    """Everything a unit stands for."""
    tokenizer = targets.encoders["text"].tokenizer
    if isinstance(tokenizer, BPE):
        return [tokenizer.processor.id_to_piece(unit) for unit in range(1, tokenizer.size)]
    return list(tokenizer.symbols if isinstance(tokenizer, Characters) else tokenizer.words)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_of_validation_rows_leaves_no_trace(kind):
    train = polars.DataFrame({"id": [f"t{row}" for row in range(40)], "text": (TEXTS * 4)[:40]})
    settings = {"kind": kind, "vocab": 60, "alphabet": None}
    # Frequent enough to be a piece of its own, and with a letter of its own.
    valid = polars.DataFrame({"id": [f"v{row}" for row in range(400)], "text": ["щщщbrownщщщ canary"] * 400})
    alone = fit_targets(train, ["text"], settings, train)
    among = fit_targets(train, ["text"], settings, polars.concat([train, valid]))
    assert alone.to_json() == among.to_json()
    assert not any("щ" in piece or "canary" in piece for piece in pieces(among))
    leaky = fit_targets(polars.concat([train, valid]), ["text"], settings, train)  # what a leak would look like
    assert any("щ" in piece or "canary" in piece for piece in pieces(leaky))


@pytest.mark.parametrize("kind", KINDS)
def test_unit_0_is_never_a_target(kind):
    train = polars.DataFrame({"id": [str(row) for row in range(len(TEXTS))], "text": TEXTS})
    encoder = fit_targets(train, ["text"], {"kind": kind, "vocab": 60, "alphabet": None}, train).encoders["text"]
    assert encoder.axes == "U" and encoder.size == TOKENIZERS[kind].size
    for text in (*TEXTS, "", "жук 中文 the cat", "жжж"):
        units = encoder.encode(text)
        assert units.dtype.kind == "i" and units.ndim == 1 and (units > 0).all() and (units < encoder.size).all()
    assert len(encoder.encode("")) == 0


def test_unknown_characters_of_training_rows_are_named_with_their_row():
    train = polars.DataFrame({"id": ["a", "b", "c"], "text": ["abba", "ab? b", "cab"]})
    with pytest.raises(
        InputError, match=r"column 'text': text outside the vocabulary in 2 rows: b \('\?'\), c \('c'\)"
    ):
        fit_targets(train, ["text"], {"kind": "chars", "vocab": 0, "alphabet": "ab "}, train)
    assert unknown_symbols(Characters("ab"), "abc cd") == ["c", "d"]
    assert unknown_symbols(Words(["ab"]), "ab ba ab ba") == ["ba"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("bpe", TEXTS, 5000, None), "text.vocab: 5000 pieces cannot be fitted to 10 texts"),
        (("bpe", TEXTS, 5, None), "text.vocab: 5 pieces cannot be fitted to 10 texts"),
        (("chars", TEXTS, 0, "abca"), "text.alphabet holds 'a' twice"),
        (("bpe", TEXTS, 60, "abc"), "text.alphabet is for kind chars; found kind 'bpe'"),
    ],
)
def test_useless_settings_are_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        fit_tokenizer(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state", [{"kind": "bpe", "model": ""}, {"kind": "bpe", "model": "Z2FyYmFnZQ=="}, {"kind": "syllables"}]
)
def test_damaged_tokenizers_are_refused(state, capfd):
    with pytest.raises(InputError):
        load_tokenizer(state).encode("a")
    assert not capfd.readouterr().out


def test_missing_sentencepiece_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"needs sentencepiece: pip install 'seqformer\[asr\]'"):
        fit_tokenizer("bpe", TEXTS, 60, None)
