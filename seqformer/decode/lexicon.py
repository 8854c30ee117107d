"""A lexicon, words and the units that they are made of, and the prefix tree of states that a search walks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seqformer.decode.hmm import SILENCE, Topology
from seqformer.errors import InputError, nearest

Entry = tuple[str, tuple[int, ...]]  # a word and its units; a word with several pronunciations has several
ROOT, PAUSE = 0, 1  # positions of a tree that are in no word


def unit_names(spellings: Sequence[str]) -> dict[str, int]:
    """{name in a lexicon file: unit}: what a unit adds to a text, with "▁" for a space.

    The "▁" of a word's first unit may be left out where no other unit has that name.
    """
    names = {spelling.replace(" ", "▁"): unit for unit, spelling in enumerate(spellings) if spelling.strip()}
    return {name.removeprefix("▁"): unit for name, unit in names.items()} | names


def read_lexicon(path: str | Path, tokenizer) -> list[Entry]:
    """The entries of a text file, in each line a word and its units; a word alone is as the tokenizer writes it.

    Empty lines are left out. Raises InputError naming file, line, word and unit when a unit is unknown, or a word
    alone has a symbol that no unit is for, or there is no word.
    """
    names = unit_names(tokenizer.spellings())
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no lexicon: {error}") from error
    entries: dict[Entry, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, *units = line.split()
        for unit in units:
            if unit not in names:
                raise InputError(f"{path}, line {number}: word {word!r}, unknown unit {unit!r}; {nearest(unit, names)}")
        spelled = tuple(names[unit] for unit in units) or tuple(tokenizer.encode(word))
        if not spelled or 0 in spelled:
            raise InputError(f"{path}, line {number}: word {word!r} has a symbol that no unit is for; give its units")
        entries[word, spelled] = None
    if not entries:
        raise InputError(f"{path} is no lexicon: it has no words")
    return list(entries)


def spell_words(words: Iterable[str], tokenizer) -> list[Entry]:
    """Words as their tokenizer writes them; those with an unknown symbol are left out."""
    found = ((word, tuple(tokenizer.encode(word))) for word in words)
    return [(word, units) for word, units in found if units and 0 not in units]


class Tree:
    """The prefix tree of a lexicon, its nodes units, each of some positions, one for each of their states.

    ``emits`` (P,) is the state of a position. From a position a path stays, or moves to one of ``moves``, in the next
    frame; ``words`` are those (places in ``names``) that are complete in it. Both are lists of lists in one array:
    those of position p are ``values[starts[p] : starts[p + 1]]``. Position ROOT is between two words and no frame's,
    PAUSE is the silence between them. ``below`` are pairs of positions (Q,) and words (Q,) that may yet come of them.
    """

    def __init__(self, entries: Sequence[Entry], topology: Topology):
        self.names = list(dict.fromkeys(word for word, _ in entries))
        numbers = {word: number for number, word in enumerate(self.names)}
        nodes: dict[tuple[int, int], int] = {}  # (node above, unit) -> node, from 1; 0 is the root
        complete: list[list[int]] = [[]]
        below: set[tuple[int, int]] = set()
        for word, units in entries:
            node = 0
            for unit in units:
                node = nodes.setdefault((node, unit), len(complete))
                complete += [[]] if node == len(complete) else []
                below.add((node, numbers[word]))
            if numbers[word] not in complete[node]:
                complete[node].append(numbers[word])
        S = topology.states
        children: list[list[int]] = [[] for _ in complete]
        emits = [SILENCE, SILENCE]
        for (above, unit), node in nodes.items():  # in the order of their numbers
            children[above].append(self._first(node, S))
            emits += topology.of(unit)
        moves, words = [[*children[0], PAUSE], children[0]], [[], []]
        for node in range(1, len(complete)):
            first = self._first(node, S)
            moves += [[first + state + 1] for state in range(S - 1)] + [children[node]]
            words += [[]] * (S - 1) + [complete[node]]
        self.emits, self.moves, self.words = np.array(emits), _joined(moves), _joined(words)
        self.below = tuple(
            np.array([(self._first(node, S) + state, word) for node, word in sorted(below) for state in range(S)]).T
        )

    @staticmethod
    def _first(node: int, states: int) -> int:
        return 2 + (node - 1) * states

    @property
    def size(self) -> int:
        return len(self.emits)


def _joined(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(starts (P + 1,), values)."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
    return starts, np.array([value for one in lists for value in one], int)


def unfold(joined: tuple[np.ndarray, np.ndarray], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For positions (n,) all values of each, and which of the n each is of."""
    starts, values = joined
    counts = starts[positions + 1] - starts[positions]
    source = np.repeat(np.arange(len(positions)), counts)
    place = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    return values[starts[positions][source] + place], source
