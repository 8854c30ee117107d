"""What a language model and hot words add to the prefixes of a beam search, character by character of their text."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

SPACE = "▁"  # as a token of a model of characters


class LanguageModel(Protocol):
    """States are hashable. ``units`` says what a token is: "words" or "chars"."""

    units: str

    def start(self) -> Hashable: ...

    def score(self, state: Hashable, token: str) -> tuple[float, Hashable]:
        """log p(token | state) and the state after it."""

    def finish(self, state: Hashable) -> float:
        """log p of the end of the text."""


class Place(NamedTuple):
    """Where a text stands."""

    model: Any  # the language model's state
    word: str  # begun and not ended, in which ends are not known
    begun: bool  # whether there is any word before or now
    node: int  # of the hot words read up to now, or LOST
    lent: float  # by a hot word that may yet break off


LOST = -1  # the word is no hot one


class Fusion:
    """Adds ``weight`` log p(token) + ``bonus`` for each token of a language model, and ``hot`` for hot words.

    ``spellings[unit]`` is what a unit adds to the text, a space where a word begins; "" of the blank. A word is scored
    when it ends, a character at once, a space when the next word begins: those at the ends of a text do not count.

    Each character of a hot word (or of some, "new york") adds ``hot``, taken back when the text goes on otherwise or
    the word does not end there. One that begins inside another that goes on is not seen. Raises ValueError when
    ``weight`` is negative.
    """

    def __init__(
        self,
        spellings: Sequence[str],
        model: LanguageModel | None = None,
        weight: float = 0.5,
        bonus: float = 0.0,
        words: Sequence[str] = (),
        hot: float = 1.0,
    ):
        if weight < 0 or hot < 0:
            raise ValueError(f"weight {weight}, hot {hot}: expected 0 or more")
        self.spellings, self.model = list(spellings), model
        self.weight, self.bonus, self.hot = weight, bonus, hot
        self.next, self.ends = _tree(words)
        # No log p is above 0. A unit ends at most as many words as it has spaces; with characters, a space may be due.
        tokens = [len(text) + 1 if model and model.units == "chars" else text.count(" ") for text in self.spellings]
        bonuses = max(bonus, 0.0) * bool(model) * np.array(tokens)
        self.most = bonuses + hot * np.array([self._most_hot(text) for text in self.spellings])
        self.parts = [text.split(" ") for text in self.spellings]
        self.kinds = np.arange(2, 2 + len(self.spellings))
        self.plain = bool(model) and model.units == "words" and not self.next
        if self.plain:  # units inside a word add nothing, those that begin one what the word before is worth
            alone = [text.count(" ") + 2 * (" " in text[1:]) for text in self.spellings]
            self.kinds = np.where(np.array(alone) < 2, alone, self.kinds)
        self.said: dict[tuple[Hashable, str], tuple[float, Hashable]] = {}  # (state, token) -> gain, state

    def _most_hot(self, spelling: str) -> int:
        """At most so many characters of a unit go on with a hot word, wherever in one, or in none, the text stands."""
        nodes, count = {node for node, _ in self.next} | {0}, 0
        for character in spelling:
            nodes = {self.next[node, character] for node in nodes if (node, character) in self.next}
            count += bool(nodes)
            nodes |= {0} if character == " " else set()
        return count

    def start(self) -> Place:
        return Place(self.model.start() if self.model else None, "", False, 0, 0.0)

    def extend(self, state: Place, unit: int) -> tuple[float, Place]:
        """What the characters of a unit add, and where the text then stands."""
        if self.plain:
            return self._words(state, *self.parts[unit])
        gain = 0.0
        for character in self.spellings[unit]:
            more, state = self._space(state) if character == " " else self._letter(state, character)
            gain += more
        return gain, state

    def _words(self, state: Place, before: str, *parts: str) -> tuple[float, Place]:
        """``extend`` by words, where there are no hot ones and no characters to score."""
        gain, model, word = 0.0, state.model, state.word + before
        for part in parts:
            if word:
                more, model = self._score(model, word)
                gain += more
            word = part
        return gain, Place(model, word, True, 0, 0.0)

    def finish(self, state: Place) -> float:
        """What the end of the text adds; the model's own end has no bonus."""
        gain, state = self._space(state)
        # A space after a hot word lends for more words to come; they do not.
        return gain - state.lent + (self.weight * self.model.finish(state.model) if self.model else 0.0)

    def _letter(self, state: Place, letter: str) -> tuple[float, Place]:
        gain, model = 0.0, state.model
        if self.model and self.model.units == "chars":
            tokens = [SPACE, letter] if state.begun and not state.word else [letter]
            for token in tokens:
                more, model = self._score(model, token)
                gain += more
        node, lent = self.next.get((state.node, letter), LOST), state.lent
        if node == LOST:
            node, gain, lent = LOST if state.word else self.next.get((0, letter), LOST), gain - lent, 0.0
        more = self.hot if node != LOST else 0.0
        # Only a model of words needs more than that there is one.
        word = state.word + letter if self.model and self.model.units == "words" else "-"
        return gain + more, Place(model, word, True, node, lent + more)

    def _space(self, state: Place) -> tuple[float, Place]:
        """The end of a word, if there is one."""
        if not state.word:
            return 0.0, state
        gain, model = 0.0, state.model
        if self.model and self.model.units == "words":
            gain, model = self._score(model, state.word)
        earned = state.node in self.ends
        lent, node = 0.0 if earned else state.lent, self.next.get((state.node, " "), LOST)
        if node != LOST:
            gain, lent = gain + self.hot, lent + self.hot
        else:
            gain, lent, node = gain - lent, 0.0, 0
        return gain, Place(model, "", True, node, lent)

    def _score(self, model: Hashable, token: str) -> tuple[float, Hashable]:
        found = self.said.get((model, token))
        if found is None:
            log_p, after = self.model.score(model, token)
            found = self.said[model, token] = self.weight * log_p + self.bonus, after
        return found


def _tree(words: Sequence[str]) -> tuple[dict[tuple[int, str], int], set[int]]:
    """{(node, character): node}, from node 0, and the nodes where a hot word is complete."""
    following: dict[tuple[int, str], int] = {}
    ends = set()
    for word in words:
        node = 0
        for character in " ".join(word.split()):
            node = following.setdefault((node, character), len(following) + 1)
        ends.add(node)
    return following, ends - {0}
