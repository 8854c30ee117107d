"""Texts with the hidden Markov state of each frame: what a hybrid learns, and how its answer becomes a text again.

In a manifest, a column of structs: ``text``, and fields of lists of states, each named by the fingerprint of the rows
that the model which aligned them was trained on (``seqformer.align_rows`` writes it). A fold learns from the field of
its own training rows only, so that no text which it is validated on can have reached its targets. Rows without states
there, such as all that it validates, have a text alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.text import Tokenizer, load_tokenizer
from seqformer.decode.hmm import Topology, align_states, log_priors, scaled_likelihoods
from seqformer.decode.lexicon import Entry, Tree, read_lexicon, spell_words
from seqformer.decode.prefix_beam import Hypothesis
from seqformer.decode.word_search import Reading, WordSearch
from seqformer.errors import InputError, first_few

if TYPE_CHECKING:
    import polars

TEXT = "text"
LEAST = 1e-30  # a probability below it is rounded up, for its logarithm


class States:
    """Class numbers of frames for the loss; a text of probabilities of frames, by a search over the lexicon's words.

    ``field`` is that of the column to learn from, ``log_prior`` (states,) what was counted in it.
    """

    axes = "U"  # frames of the features, of which audio has fewer than samples

    def __init__(
        self,
        tokenizer: Tokenizer,
        field: str,
        lexicon: Sequence[Entry],
        log_prior: np.ndarray,
        states: int,
        prior_scale: float,
        bonus: float,
        beam: int,
    ):
        self.tokenizer, self.field, self.lexicon, self.log_prior = tokenizer, field, list(lexicon), log_prior
        self.topology = Topology(tokenizer.size, states)
        self.prior_scale, self.bonus, self.beam = prior_scale, bonus, beam
        self.size = self.topology.size
        self.search: tuple[tuple, WordSearch] | None = None  # the last, which remembers its model's answers
        self.tree = Tree(self.lexicon, self.topology)

    def encode(self, value: dict[str, Any]) -> np.ndarray:
        """States (T,), -1 not scored, or (0,) where there are none."""
        states = value.get(self.field)
        return np.asarray([] if states is None else states, dtype=np.int64)

    def truth(self, value: dict[str, Any]) -> str:
        return value[TEXT]

    def decode(self, prediction: np.ndarray) -> str:
        """Probabilities (T, states) -> the text found without a language model."""
        return " ".join(self.read(np.log(np.maximum(prediction, LEAST))).words)

    def read(self, log_probs: np.ndarray, model=None, weight: float = 1.0, bonus: float | None = None) -> Reading:
        """log p(state) in each frame (T, states) -> the best words; without a ``bonus`` for each, its own."""
        bonus = self.bonus if bonus is None else bonus
        key = id(model), weight, bonus  # no other model has this number as long as the search holds its own
        if self.search is None or self.search[0] != key:
            self.search = key, WordSearch(self.tree, model, weight, bonus, self.beam)
        return self.search[1].read(scaled_likelihoods(log_probs, self.log_prior, self.prior_scale))

    def align(self, log_probs: np.ndarray, text: str) -> np.ndarray:
        """log p(state) (T, states) and what was said -> the state of each frame on the best path.

        Of a word with several pronunciations it is the first. Raises ValueError when the text does not fit.
        """
        first = {word: units for word, units in reversed(self.lexicon)}
        words = [first.get(word) or tuple(self.tokenizer.encode(word)) for word in text.split()]
        units = [unit for word in words for unit in word]
        if 0 in units:
            raise ValueError("a word has a symbol that no unit is for")
        begins = [not place for word in words for place in range(len(word))]
        scores = scaled_likelihoods(log_probs, self.log_prior, self.prior_scale)
        return align_states(scores, units, begins, self.topology)[0]

    def state(self) -> dict:
        lexicon = [[word, *map(int, units)] for word, units in self.lexicon]
        settings = {"states": self.topology.states, "prior_scale": self.prior_scale, "bonus": self.bonus}
        found = {"kind": "states", "tokenizer": self.tokenizer.state(), "field": self.field, "lexicon": lexicon}
        return found | settings | {"beam": self.beam, "log_prior": np.asarray(self.log_prior).tolist()}

    @classmethod
    def from_state(cls, state: dict) -> "States":
        given = {name: state[name] for name in ("field", "states", "prior_scale", "bonus", "beam")}
        lexicon = [(word, tuple(units)) for word, *units in state["lexicon"]]
        return cls(load_tokenizer(state["tokenizer"]), lexicon=lexicon, log_prior=np.array(state["log_prior"]), **given)


class WordReader:
    """What a BeamDecoder reads a hybrid's texts with, in place of a tokenizer: the units of a hypothesis are words."""

    def __init__(self, states: States):
        self.states = states

    def hypotheses(self, log_probs: np.ndarray, model, weight: float, bonus: float) -> list[Hypothesis]:
        """The best text alone."""
        found = self.states.read(log_probs, model, weight, bonus)
        return [Hypothesis(found.words, found.score, found.score)]

    def decode(self, words: Sequence[str]) -> str:
        return " ".join(words)

    def state(self) -> dict:
        return self.states.state()


def fit_states(column: "polars.Series", ids: "polars.Series", own: str, tokenizer: Tokenizer, hmm: dict) -> States:
    """The States of a fold: priors counted in the states of its training rows (``column``), of fingerprint ``own``.

    The lexicon is that of ``hmm.lexicon`` or, without, the words of the training texts. Raises InputError when there
    are no states of a model trained on these rows, or states of another number for each unit, or units.
    """
    known = [field.name for field in column.dtype.fields if field.name != TEXT]
    if own not in known:
        raise InputError(
            f"column {column.name!r} has no states by a model that was trained on the rows of this fold; "
            "align with a run of the same rows and folds"
        )
    found, topology = column.struct.field(own), Topology(tokenizer.size, hmm["states"])
    numbers = found.explode().drop_nulls().to_numpy()
    numbers = numbers[numbers >= 0]
    if not len(numbers):
        raise InputError(f"column {column.name!r}: no frame of a training row has a state")
    empty = ids.filter(found.is_null())
    if len(empty):
        raise InputError(f"column {column.name!r} has no states for {len(empty)} training rows: {first_few(empty)}")
    if numbers.max() >= topology.size:
        wanted = f"{tokenizer.size - 1} units of {hmm['states']} states and silence are {topology.size}"
        raise InputError(
            f"column {column.name!r} has state {numbers.max()}; {wanted}: align with the config's hmm.states"
        )
    texts = column.struct.field(TEXT).to_list()
    words = sorted({word for text in texts for word in text.split()})
    path = hmm["lexicon"]
    lexicon = read_lexicon(path, tokenizer) if path else spell_words(words, tokenizer)
    counts = np.bincount(numbers, minlength=topology.size)
    given = {name: hmm[name] for name in ("states", "prior_scale", "bonus", "beam")}
    return States(tokenizer, own, lexicon, log_priors(counts), **given)
