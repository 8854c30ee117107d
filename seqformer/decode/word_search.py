"""Time-synchronous Viterbi beam search over a lexicon's tree of states, with a language model of words (Ney 1984).

A token is a path's end: a position of the tree and a state of the language model; of two paths that meet in both only
the better goes on. All tokens of a frame are moved at once.
"""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from seqformer.decode.fusion import LanguageModel
from seqformer.decode.lexicon import PAUSE, ROOT, Tree, unfold
from seqformer.errors import InputError


class Reading(NamedTuple):
    """Words of the best path, the frame after each one's last, and the path's score."""

    words: list[str]
    ends: list[int]
    score: float


class Tokens(NamedTuple):
    """Paths (n,): their position in the tree, number of the model's state, score, and last word (a link, -1 none)."""

    position: np.ndarray
    model: np.ndarray
    score: np.ndarray
    link: np.ndarray

    def take(self, index: np.ndarray) -> "Tokens":
        return Tokens(*(values[index] for values in self))


class WordSearch:
    """``read(scores)`` -> the words whose path has the largest sum of scores of its frames' states and of its words.

    A word adds ``bonus`` and, with a ``model`` of words, ``weight`` log p(word), a text's end ``weight`` log p(end).
    After each frame the best ``beam`` tokens are kept, at most ``margin`` behind the best; the best a token may yet
    get for its word, after the beginning of a text, counts there. Without a limit the search is exhaustive. Raises
    InputError when the model is one of characters, ValueError when ``beam`` is below 1.
    """

    def __init__(
        self,
        tree: Tree,
        model: LanguageModel | None = None,
        weight: float = 1.0,
        bonus: float = 0.0,
        beam: int | None = 1000,
        margin: float = np.inf,
    ):
        if model is not None and model.units != "words":
            raise InputError(f"the language model is one of {model.units}; a lexicon needs one of words")
        if beam is not None and beam < 1:
            raise ValueError(f"beam {beam}: expected 1 or more")
        self.tree, self.model, self.weight, self.bonus = tree, model, weight, bonus
        self.beam, self.margin = beam, margin
        self.states: list[Hashable] = [model.start() if model else None]
        self.numbers = {self.states[0]: 0}
        self.known: dict[tuple[int, int], tuple[float, int]] = {}  # (model's state, word) -> what it adds, state then
        self.ahead = self._ahead()

    def _ahead(self) -> np.ndarray:
        """The most that a position's words may add (P,), to compare tokens by; it is no part of a score."""
        gains = np.array([self._word(0, word)[0] for word in range(len(self.tree.names))])
        ahead, (positions, words) = np.full(self.tree.size, -np.inf), self.tree.below
        np.maximum.at(ahead, positions, gains[words])
        ahead[[ROOT, PAUSE]] = 0.0
        return ahead

    def _word(self, state: int, word: int) -> tuple[float, int]:
        found = self.known.get((state, word))
        if found is None:
            gain, after = self.bonus, state
            if self.model is not None:
                log_p, then = self.model.score(self.states[state], self.tree.names[word])
                gain, after = gain + self.weight * log_p, self.numbers.setdefault(then, len(self.states))
                if after == len(self.states):
                    self.states.append(then)
            found = self.known[state, word] = gain, after
        return found

    def read(self, scores: np.ndarray) -> Reading:
        """scores (T, states) -> the best reading.

        Where the beam lost every path that ends with the frames, the words that its best has complete, scored -inf.
        """
        scores = np.asarray(scores, np.float64)
        links: list[tuple[int, int, int]] = []  # link before, word, frame after it
        roots = Tokens(np.array([ROOT]), np.array([0]), np.array([0.0]), np.array([-1]))
        tokens = roots.take(np.array([], int))
        for frame, row in enumerate(scores):
            tokens = self._step(tokens, roots, row)
            roots = self._leave(tokens, frame + 1, links)
        return self._best(tokens, roots, links)

    def _step(self, tokens: Tokens, roots: Tokens, row: np.ndarray) -> Tokens:
        """Tokens in the next frame."""
        both = Tokens(*(np.concatenate(pair) for pair in zip(tokens, roots, strict=True)))
        moved, source = unfold(self.tree.moves, both.position)
        moved = both.take(source)._replace(position=moved)
        every = Tokens(*(np.concatenate(pair) for pair in zip(tokens, moved, strict=True)))
        every = _met(every, every.model * self.tree.size + every.position)
        return self._pruned(every._replace(score=every.score + row[self.tree.emits[every.position]]))

    def _pruned(self, tokens: Tokens) -> Tokens:
        hope = tokens.score + self.ahead[tokens.position]
        if np.isfinite(self.margin):
            kept = np.flatnonzero(hope >= hope.max(initial=-np.inf) - self.margin)
            tokens, hope = tokens.take(kept), hope[kept]
        if self.beam is not None and len(hope) > self.beam:
            tokens = tokens.take(np.argpartition(-hope, self.beam - 1)[: self.beam])
        return tokens

    def _leave(self, tokens: Tokens, frame: int, links: list[tuple[int, int, int]]) -> Tokens:
        """The tokens whose word is complete, between it and the next."""
        words, source = unfold(self.tree.words, tokens.position)
        left = tokens.take(source)
        asked = zip(left.model.tolist(), words.tolist(), strict=True)
        found = np.array([self._word(state, word) for state, word in asked]).reshape(-1, 2)
        left = left._replace(model=found[:, 1].astype(int), score=left.score + found[:, 0])
        order = _winners(left.score, left.model)
        left, first = left.take(order), len(links)
        links += zip(left.link.tolist(), words[order].tolist(), [frame] * len(order), strict=True)
        return left._replace(position=np.full(len(order), ROOT), link=np.arange(first, len(links)))

    def _best(self, tokens: Tokens, roots: Tokens, links: list[tuple[int, int, int]]) -> Reading:
        silent = tokens.take(tokens.position == PAUSE)
        ended = Tokens(*(np.concatenate(pair) for pair in zip(roots, silent, strict=True)))
        whole = len(ended.score) > 0
        ended = ended if whole else tokens
        score = ended.score
        if self.model is not None:
            score = score + self.weight * np.array([self.model.finish(self.states[one]) for one in ended.model])
        best = int(score.argmax())
        words, link = [], int(ended.link[best])
        while link >= 0:
            link, word, frame = links[link]
            words.append((self.tree.names[word], frame))
        return Reading(
            [word for word, _ in words[::-1]],
            [frame for _, frame in words[::-1]],
            float(score[best]) if whole else -np.inf,
        )


def _winners(score: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The place of the best score of each key."""
    order = np.lexsort((-score, key))
    key = key[order]
    return order[np.concatenate([[True], key[1:] != key[:-1]])[: len(order)]]


def _met(tokens: Tokens, key: np.ndarray) -> Tokens:
    return tokens.take(_winners(tokens.score, key))
