r"""Back-off n-gram models in ARPA files: read strictly, scored with natural logarithms.

A model's tokens are words or characters, with "▁" for the space. Ours says which before ``\data\``; in a file that
does not, they are characters where every one of them is a single character, and "▁" is among them.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from seqformer.errors import InputError

BEGIN, END, UNKNOWN, SPACE = "<s>", "</s>", "<unk>", "▁"
UNITS = "units: "  # before what the tokens are, in a line before the counts
LOG_10 = math.log(10.0)
NO_UNKNOWN = -100.0 * LOG_10  # log-probability of an unknown token where a file has no <unk>, as in KenLM
State = tuple[str, ...]


class NGram:
    """``entries[n - 1]`` has {n tokens: (log p of the last after the others, log back-off weight as a context)}."""

    def __init__(self, entries: Sequence[dict[State, tuple[float, float]]], units: str = "words"):
        self.entries, self.order, self.units = list(entries), len(entries), units

    def start(self) -> State:
        """The state at the beginning of a text."""
        return (BEGIN,) if self.order > 1 else ()

    def score(self, state: State, token: str) -> tuple[float, State]:
        """log p(token | state), by back-off, and the state after it: the longest context that the model knows."""
        token = token if (token,) in self.entries[0] else UNKNOWN
        log_p = 0.0
        for begin in range(len(state) + 1):
            found = self.entries[len(state) - begin].get((*state[begin:], token))
            if found is not None:
                return log_p + found[0], self._known((*state, token))
            if begin < len(state):
                log_p += self.entries[len(state) - begin - 1].get(state[begin:], (0.0, 0.0))[1]
        return log_p + NO_UNKNOWN, ()

    def finish(self, state: State) -> float:
        """log p of the end of the text."""
        return self.score(state, END)[0]

    def _known(self, tokens: State) -> State:
        tokens = tokens[max(0, len(tokens) - self.order + 1) :]
        while tokens and tokens not in self.entries[len(tokens) - 1]:
            tokens = tokens[1:]
        return tokens

    def tokens(self, text: str) -> list[str]:
        """A text as the model's tokens."""
        return text_tokens(text, self.units)

    def log_probs(self, text: str) -> list[float]:
        """log p of each token of a text and of its end."""
        state, found = self.start(), []
        for token in self.tokens(text):
            log_p, state = self.score(state, token)
            found.append(log_p)
        return [*found, self.finish(state)]

    def unknown(self, token: str) -> bool:
        return (token,) not in self.entries[0]


def text_tokens(text: str, units: str) -> list[str]:
    """Words, or characters with one "▁" between words."""
    words = text.split()
    return words if units == "words" else list(SPACE.join(words))


def perplexity(model: NGram, texts: Sequence[str]) -> tuple[float, float, int, int]:
    """Perplexity of all tokens and ends of texts, that of the known ones, how many there are, and how many unknown.

    Raises InputError when there is no text.
    """
    if not texts:
        raise InputError("there is no text to measure the perplexity of")
    every, known, total, unknown = 0.0, 0.0, 0, 0
    for text in texts:
        out = [model.unknown(token) for token in model.tokens(text)] + [False]
        for log_p, odd in zip(model.log_probs(text), out, strict=True):
            every, known, total, unknown = every + log_p, known + log_p * (not odd), total + 1, unknown + odd
    return _exp(-every / total), _exp(-known / max(total - unknown, 1)), total, unknown


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


class _Lines:
    """Lines of a file that are not empty, with their numbers, for errors that name them."""

    def __init__(self, path: Path):
        self.path, self.number = path, 0
        try:
            self.lines: Iterator[str] = iter(path.read_text(encoding="utf-8").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no ARPA file: {error}") from error

    def next(self) -> str | None:
        for line in self.lines:
            self.number += 1
            if line.strip():
                return line.strip()
        return None

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}, line {self.number}: {what}")


def read_arpa(path: str | Path) -> NGram:
    """The model of an ARPA file. Raises InputError, naming the line, when it is not sound in all its sections."""
    lines = _Lines(Path(path))
    line, units = lines.next(), None
    while line != "\\data\\":  # publishers write what they like before it
        if line is not None and line.startswith(UNITS):
            units = line.removeprefix(UNITS)
        if line is None:
            lines.fail("the file ends without \\data\\")
        line = lines.next()
    counts, line = _read_counts(lines)
    entries: list[dict[State, tuple[float, float]]] = []
    for n, count in enumerate(counts, start=1):
        if line != f"\\{n}-grams:":
            lines.fail(f"found {_short(line)}; expected \\{n}-grams:")
        found, line = _read_section(lines, n, n == len(counts), entries)
        if len(found) != count:
            lines.fail(f"the {n}-grams are {len(found)}; \\data\\ says {count}")
        entries.append(found)
    if line != "\\end\\":
        lines.fail(f"found {_short(line)}; expected \\end\\")
    if lines.next() is not None:
        lines.fail("there is more after \\end\\")
    if units not in ("words", "chars"):
        single = all(len(token) == 1 for (token,) in entries[0] if token not in (BEGIN, END, UNKNOWN))
        units = "chars" if single and (SPACE,) in entries[0] else "words"
    return NGram(entries, units)


def _read_counts(lines: _Lines) -> tuple[list[int], str | None]:
    """Counts of 1-grams, 2-grams, ... and the line after them."""
    counts: list[int] = []
    while (line := lines.next()) is not None and line.startswith("ngram"):
        order, sign, count = line.removeprefix("ngram").partition("=")
        if not sign or not order.strip().isdecimal() or not count.strip().isdecimal():
            lines.fail(f"found {_short(line)}; expected such as: ngram 1=5000")
        if int(order) != len(counts) + 1:
            lines.fail(f"found the count of {int(order)}-grams; expected that of {len(counts) + 1}-grams")
        counts.append(int(count))
    if not counts or not counts[0]:
        lines.fail("\\data\\ has no count of 1-grams, or it is 0")
    return counts, line


def _read_section(lines: _Lines, n: int, last: bool, entries: list[dict]) -> tuple[dict, str | None]:
    """The n-grams up to the next line with a backslash, and that line."""
    found: dict[State, tuple[float, float]] = {}
    while (line := lines.next()) is not None and not _is_heading(line):
        fields = line.split()
        if len(fields) not in (n + 1, n + 2):
            lines.fail(f"{len(fields)} fields; a {n}-gram has a log-probability, {n} tokens and perhaps a back-off")
        tokens = tuple(fields[1 : n + 1])
        log_p = _number(lines, fields[0], "log-probability")
        if log_p > 0:
            lines.fail(f"log-probability {fields[0]}; expected 0 or less")
        if last and len(fields) > n + 1:
            lines.fail(f"a back-off at the highest order, {n}")
        back_off = _number(lines, fields[-1], "back-off") if len(fields) > n + 1 else None
        if tokens in found:
            lines.fail(f"{' '.join(tokens)} is there twice")
        if n > 1:
            _check_context(lines, tokens, entries[-1])
        found[tokens] = (log_p * LOG_10, back_off if back_off is None else back_off * LOG_10)
    if n > 1:  # a context's own weight was asked for; one that is no context needs none
        entries[-1].update({key: (one, 0.0) for key, (one, weight) in entries[-1].items() if weight is None})
    return ({key: (one, 0.0) for key, (one, _) in found.items()} if last else found), line


def _is_heading(line: str) -> bool:
    """A section's first line. A token may be a backslash, but no log-probability begins with one."""
    return line.startswith("\\")


def _check_context(lines: _Lines, tokens: State, below: dict) -> None:
    context = tokens[:-1]
    if context not in below:
        lines.fail(f"{' '.join(tokens)} is there, its context {' '.join(context)} is not")
    if below[context][1] is None:
        lines.fail(f"{' '.join(tokens)} is there, its context {' '.join(context)} has no back-off")


def _number(lines: _Lines, field: str, what: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        lines.fail(f"{what} {_short(field)}; expected a number")
    return value


def _short(text: str | None) -> str:
    return "the end of the file" if text is None else repr(text[:40])
