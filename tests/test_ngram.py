"""N-gram models: by hand on a tiny corpus, sums over the vocabulary, perplexities, and ARPA files with a fault each."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqformer.errors import InputError
from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
from seqformer.lm.ngram import NGram, perplexity, read_arpa

WORDS = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1, max_size=12)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def probability(model: NGram, context: str, token: str) -> float:
    state = model.start() if context.startswith("<s>") else ()
    for one in context.split():
        state = state if one == "<s>" else model.score(state, one)[1]
    return math.exp(model.score(state, token)[0])


def markov(lines: int, seed: int) -> list[str]:
    """Texts whose every word depends on the two before it."""
    rng, found = np.random.default_rng(seed), []
    table = np.random.default_rng(0).dirichlet(np.full(12, 0.15), size=(12, 12))
    for _ in range(lines):
        words = [0, 0]
        for _ in range(12):
            words.append(int(rng.choice(12, p=table[words[-2], words[-1]])))
        found.append(" ".join(f"w{word}" for word in words[2:]))
    return found


def test_two_sentences_by_hand():
    """ "a b" and "a": too few for counts of counts, so that the discounts are 0.5, 1 and 1.5."""
    model = train_kneser_ney(["a b", "a"], order=2)
    # Contexts before a: 1 (<s>), b: 1, </s>: 2, of 4. Taken: 0.5 + 0.5 + 1 = 2, half, for a, b, </s>, <unk> in fours.
    for token, p in {"a": 0.125 + 0.125, "b": 0.25, "</s>": 1 / 4 + 0.125, "zzz": 0.125}.items():
        assert probability(model, "", token) == pytest.approx(p)
    assert probability(model, "<s>", "a") == pytest.approx((2 - 1) / 2 + 1 / 2 * 0.25)
    assert probability(model, "<s> a", "b") == pytest.approx((1 - 0.5) / 2 + 0.5 * 0.25)
    assert probability(model, "<s> a", "</s>") == pytest.approx((1 - 0.5) / 2 + 0.5 * 0.375)
    assert probability(model, "<s> a b", "</s>") == pytest.approx((1 - 0.5) / 1 + 0.5 * 0.375)
    assert probability(model, "<s> a b", "a") == pytest.approx(0.5 * 0.25)
    assert sum(model.log_probs("a b")) == pytest.approx(math.log(0.625 * 0.375 * 0.6875))


def test_discounts_by_counts_of_counts():
    """Order 1: 8 words once, 4 twice, 3 three times, 2 four times and the end 17 times."""
    often = {1: 8, 2: 4, 3: 3, 4: 2}
    texts = [f"w{count}{i}" for count, words in often.items() for i in range(words) for _ in range(count)]
    model, total = train_kneser_ney(texts, order=1), 2 * len(texts)
    share = 8 / (8 + 2 * 4)
    d1, d2, d3 = 1 - 2 * share * 4 / 8, 2 - 3 * share * 3 / 4, 3 - 4 * share * 2 / 3
    base = (8 * d1 + 4 * d2 + 6 * d3) / total / 19  # 17 words, the end, the unknown
    for token, count, discount in (("w10", 1, d1), ("w21", 2, d2), ("w30", 3, d3), ("w41", 4, d3)):
        assert probability(model, "", token) == pytest.approx((count - discount) / total + base)
    assert probability(model, "", "never") == pytest.approx(base)


@quick
@given(WORDS, st.integers(1, 4), st.sampled_from(["words", "chars"]))
def test_probabilities_of_every_context_add_up_to_one(texts, order, units):
    model = train_kneser_ney(texts, order, units)
    tokens = [token for (token,) in model.entries[0] if token != "<s>"]
    contexts = {key for entries in model.entries[:-1] for key in entries} | {()}
    for context in contexts:
        assert sum(math.exp(model.score(context, token)[0]) for token in tokens) == pytest.approx(1.0)


def test_perplexity_falls_with_order_to_that_of_the_source_and_is_below_add_one():
    train, held_out = markov(400, 1), markov(60, 2)
    found = [perplexity(train_kneser_ney(train, order), held_out)[0] for order in (1, 2, 3)]
    assert found[0] > 1.2 * found[1] > 1.2**2 * found[2]
    lines = [["<s>", "<s>", *text.split(), "</s>"] for text in train]
    triples = Counter(tuple(line[i : i + 3]) for line in lines for i in range(len(line) - 2))
    pairs, size = Counter(), len({word for line in lines for word in line[2:]}) + 1
    for triple, count in triples.items():
        pairs[triple[:2]] += count
    logs = [math.log((triples[tuple(line[i : i + 3])] + 1) / (pairs[tuple(line[i : i + 2])] + size))
            for line in (["<s>", "<s>", *text.split(), "</s>"] for text in held_out)
            for i in range(len(line) - 2)]  # fmt: skip
    assert found[2] < math.exp(-np.mean(logs))


def test_a_written_model_is_read_back(tmp_path):
    model = train_kneser_ney(markov(40, 1), 3)
    write_arpa(model, tmp_path / "lm.arpa")
    found = read_arpa(tmp_path / "lm.arpa")
    assert [entries.keys() for entries in found.entries] == [entries.keys() for entries in model.entries]
    for text in [*markov(5, 3), "w1 new w2", ""]:
        assert found.log_probs(text) == pytest.approx(model.log_probs(text), abs=1e-5)
    assert perplexity(found, ["w1 new"])[2:] == (3, 1)
    write_arpa(train_kneser_ney(["ab a", "b"], 2, "chars"), tmp_path / "chars.arpa")
    chars = read_arpa(tmp_path / "chars.arpa")
    assert chars.units == "chars" and chars.tokens(" ab  a ") == ["a", "b", "▁", "a"]


ARPA = """made by hand
\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99 <s> -0.3
-0.5 a -0.2
-0.6 </s>
-1.5 <unk>

\\2-grams:
-0.1 <s> a
-0.4 a </s>

\\end\\
"""


def test_back_off_of_an_arpa_file_by_hand(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    model, ten = read_arpa(path), math.log(10)
    assert model.log_probs("a") == pytest.approx([-0.1 * ten, -0.4 * ten])
    assert model.log_probs("a a x") == pytest.approx(
        [-0.1 * ten, (-0.2 - 0.5) * ten, (-0.2 - 1.5) * ten, -0.6 * ten]  # <unk> is no context: nothing is taken
    )


FAULTS = [
    ("\\data\\", "data", "line 17: the file ends without \\data\\"),
    ("ngram 1=4", "ngram 1=five", "line 3: found 'ngram 1=five'; expected such as: ngram 1=5000"),
    ("ngram 1=4\n", "", "line 3: found the count of 2-grams; expected that of 1-grams"),
    ("ngram 1=4", "ngram 1=5", "line 12: the 1-grams are 4; \\data\\ says 5"),
    ("\\2-grams:", "\\3-grams:", "line 12: found '\\\\3-grams:'; expected \\2-grams:"),
    ("-0.5 a -0.2", "-0.5 a", "line 14: a </s> is there, its context a has no back-off"),
    ("-0.5 a -0.2", "0.5 a -0.2", "line 8: log-probability 0.5; expected 0 or less"),
    ("-0.5 a -0.2", "nan a -0.2", "line 8: log-probability 'nan'; expected a number"),
    ("-0.5 a -0.2", "-0.5 a b c", "line 8: 4 fields; a 1-gram has"),
    ("-0.5 a -0.2", "-0.5 </s> -0.2", "line 9: </s> is there twice"),
    ("-0.4 a </s>", "-0.4 b </s>", "line 14: b </s> is there, its context b is not"),
    ("-0.4 a </s>", "-0.4 a </s> -0.1", "line 14: a back-off at the highest order, 2"),
    ("\\end\\", "", "line 17: found the end of the file; expected \\end\\"),
    ("\\end\\", "\\end\\\nmore", "line 17: there is more after \\end\\"),
]


@pytest.mark.parametrize(("old", "new", "wanted"), FAULTS)
def test_a_fault_of_an_arpa_file_names_its_line(tmp_path, old, new, wanted):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_arpa(path)
    assert str(error.value).startswith(f"{path}, {wanted}") and "\n" not in str(error.value)


def test_what_cannot_be_trained_on():
    for texts, order, wanted in [([], 2, "no text"), (["a"], 0, "order 0"), (["a", "x </s>"], 2, "text 2 holds </s>")]:
        with pytest.raises(InputError, match=wanted):
            train_kneser_ney(texts, order)
