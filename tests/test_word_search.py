"""The search over a lexicon's tree of states against all paths of small cases; lexicon files; language models."""

import itertools

import numpy as np
import pytest

from seqformer.data.text import BPE, Characters, Words
from seqformer.decode.hmm import Topology
from seqformer.decode.lexicon import Tree, read_lexicon, spell_words, unit_names
from seqformer.decode.word_search import WordSearch
from seqformer.errors import InputError
from seqformer.lm.kneser_ney import train_kneser_ney

# Shared beginnings, one word inside another, two words that sound alike, one with two pronunciations, a repeated unit.
LEXICON = [("a", (1,)), ("b", (2,)), ("ab", (1, 2)), ("ba", (2, 1)), ("a", (2, 2)), ("ab2", (1, 2)), ("aa", (1, 1))]
MODEL = train_kneser_ney(["a b ab", "ba a", "ab2 a b", "aa ab ab2"], 2, "words")


def readings(topology: Topology, frames: int) -> dict[tuple[str, ...], set[tuple[int, ...]]]:
    """Every text that fits into the frames, and all of its paths: the states of the frames."""
    found: dict[tuple[str, ...], set[tuple[int, ...]]] = {}

    def follow(words: tuple[str, ...], path: tuple[int, ...]) -> None:
        for silence in range(frames - len(path) + 1):
            paused = path + (0,) * silence
            if len(paused) == frames:
                found.setdefault(words, set()).add(paused)
            for word, units in LEXICON:
                states = [state for unit in units for state in topology.of(unit)]
                room = frames - len(paused) - len(states)
                if room >= 0:
                    for extra in itertools.product(range(room + 1), repeat=len(states)):
                        if sum(extra) <= room:
                            spoken = (s for s, more in zip(states, extra, strict=True) for s in (s,) * (1 + more))
                            follow((*words, word), paused + tuple(spoken))

    follow((), ())
    return found


@pytest.mark.parametrize(("states", "most"), [(1, 4), (2, 6), (3, 7)])
def test_the_reading_is_the_best_of_all(states, most):
    topology = Topology(3, states)
    tree, rng = Tree(LEXICON, topology), np.random.default_rng(0)
    settings = [(None, 1.0, 0.0), (None, 1.0, -1.5), (MODEL, 0.7, 0.4), (MODEL, 2.0, 0.0)]
    for frames in range(most + 1):
        every = {words: np.array(sorted(paths), int) for words, paths in readings(topology, frames).items()}
        for (model, weight, bonus), _ in itertools.product(settings, range(4)):
            search = WordSearch(tree, model, weight, bonus, beam=None)
            scores = 2 * rng.standard_normal((frames, topology.size))
            best = {words: scores[np.arange(frames), paths].sum(axis=1).max() for words, paths in every.items()}
            for words in best:
                best[words] += bonus * len(words) + (weight * sum(model.log_probs(" ".join(words))) if model else 0)
            found = search.read(scores)
            assert found.score == pytest.approx(max(best.values()))
            assert best[tuple(found.words)] == pytest.approx(found.score)
            assert found.ends == sorted(found.ends) and all(0 < end <= frames for end in found.ends)


def test_ends_are_where_words_end():
    topology = Topology(3, 2)
    states = [0, 1, 2, 2, 0, 0, 3, 4, 1, 2, 0]  # a, silence, ba
    scores = np.log(np.eye(topology.size)[states] + 1e-6)
    assert WordSearch(Tree(LEXICON, topology), bonus=-0.1).read(scores)[:2] == (["a", "ba"], [4, 10])


def test_a_narrow_beam_finds_what_is_clear_and_never_more_than_the_whole_search():
    topology, rng = Topology(3, 2), np.random.default_rng(1)
    tree = Tree(LEXICON, topology)
    for beam, margin in [(1, np.inf), (4, np.inf), (None, 3.0), (40, 1e3)]:
        for _ in range(10):
            scores = rng.standard_normal((12, topology.size))
            whole = WordSearch(tree, MODEL, 0.5, beam=None).read(scores)
            found = WordSearch(tree, MODEL, 0.5, beam=beam, margin=margin).read(scores)
            assert found.score <= whole.score + 1e-9
            assert beam != 40 or found == whole


def test_wrong_settings_are_refused():
    tree = Tree(LEXICON, Topology(3, 1))
    with pytest.raises(InputError, match="one of chars; a lexicon needs one of words"):
        WordSearch(tree, train_kneser_ney(["ab"], 2, "chars"))
    with pytest.raises(ValueError, match="beam 0"):
        WordSearch(tree, beam=0)


TOKENIZER = Characters("ab")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a a\n\nba b x\n", "line 3: word 'ba', unknown unit 'x'; known: a, b"),
        ("a a\nba b bb\n", "line 2: word 'ba', unknown unit 'bb'; did you mean 'b'?"),
        ("a a\nbac\n", "line 2: word 'bac' has a symbol that no unit is for"),
        ("\n", "it has no words"),
    ],
)
def test_a_faulty_lexicon_is_one_line_that_names_word_unit_and_line(tmp_path, text, message):
    path = tmp_path / "lexicon.txt"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_lexicon(path, TOKENIZER)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_lexicon_file_is_read_with_every_pronunciation_once(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("a a\n\nba\na b b\na  a\nba b a\n")
    assert read_lexicon(path, TOKENIZER) == [("a", (1,)), ("ba", (2, 1)), ("a", (2, 2))]


def test_words_are_spelled_as_their_tokenizer_writes_them():
    words, texts = ["no", "on", "nox"], ["no on", "on no no", "noon on"]
    assert spell_words(words, Words(["no", "on"])) == [("no", (1,)), ("on", (2,))]
    assert spell_words(words, Characters(" no")) == [("no", (2, 3)), ("on", (3, 2))]
    bpe = BPE.fit(texts, 7)
    for word, units in spell_words(words, bpe):
        assert bpe.decode(list(units)) == word and 0 not in units
    for tokenizer in (Words(["no", "on"]), Characters(" no"), bpe):
        names, spellings = unit_names(tokenizer.spellings()), tokenizer.spellings()
        assert all(spellings[unit].strip() == name.removeprefix("▁") for name, unit in names.items())
        assert set(names.values()) == {unit for unit, text in enumerate(spellings) if text.strip()}
