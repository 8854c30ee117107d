"""CTC forced alignment: the likeliest path of frames through a known text, times of its words, CTM and TextGrid."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Frames ``start`` to ``end``, the latter not among them, of a unit, and its mean probability in them."""

    unit: int
    start: int
    end: int
    posterior: float


class Word(NamedTuple):
    """A word, when it begins and ends in seconds, and the mean ``posterior`` of its units."""

    text: str
    start: float
    end: float
    confidence: float


def align(log_probs: np.ndarray, units: Sequence[int], blank: int = 0) -> tuple[list[Span], float]:
    """log_probs (T, V) and a text -> one span for each unit, and the log-probability of the likeliest path.

    Viterbi over a blank, the first unit, a blank, ...; the blank between two units may be left out where they differ.
    A span is as long as the path stays in its unit: a model with sharp peaks gives short ones. Raises ValueError when
    the text does not fit into the frames.
    """
    log_probs, units = np.asarray(log_probs, np.float64), list(units)
    repeats = sum(one == two for one, two in zip(units[1:], units, strict=False))
    if len(units) + repeats > len(log_probs):
        raise ValueError(f"{len(units)} units, {repeats} of them repeats, do not fit into {len(log_probs)} frames")
    states = np.full(2 * len(units) + 1, blank)
    states[1::2] = units
    skips = np.zeros(len(states), bool)
    skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    path, log_p = viterbi(log_probs, states, skips)
    spans = []
    for place, unit in enumerate(units):
        frames = np.flatnonzero(path == 2 * place + 1)
        start, end = int(frames[0]), int(frames[-1]) + 1
        spans.append(Span(unit, start, end, float(np.exp(log_probs[start:end, unit]).mean())))
    return spans, log_p


def viterbi(log_probs: np.ndarray, states: np.ndarray, skips: np.ndarray) -> tuple[np.ndarray, float]:
    """The best state in each frame (T,), a place in ``states`` (S,), and the path's log-probability.

    A path begins in one of the first two states and ends in one of the last two; a state follows itself, the one
    before and, where ``skips`` (S,), the one two before.
    """
    if not len(log_probs):
        return np.empty(0, int), 0.0
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    steps = np.zeros((len(log_probs), len(states)), int)
    for frame in range(1, len(log_probs)):
        from_one = np.concatenate([[-np.inf], score[:-1]])
        from_two = np.where(skips, np.concatenate([[-np.inf] * 2, score])[: len(score)], -np.inf)
        ways = np.stack([score, from_one, from_two])
        steps[frame] = ways.argmax(axis=0)
        score = ways.max(axis=0) + log_probs[frame, states]
    path = np.empty(len(log_probs), int)
    ends = score[-2:]  # the last unit, or the blank after it
    path[-1] = len(states) - len(ends) + int(ends.argmax())
    for frame in range(len(path) - 1, 0, -1):
        path[frame - 1] = path[frame] - steps[frame, path[frame]]
    return path, float(ends.max())


def word_times(spans: Sequence[Span], spellings: Sequence[str], frame_seconds: float) -> list[Word]:
    """The words of aligned units, each from the start of its first to the end of its last.

    ``spellings[unit]`` is what a unit adds to the text, a space before a word; a unit that only is a space is in none.
    """
    words: list[tuple[str, list[Span]]] = []
    new = True
    for span in spans:
        before, *parts = spellings[span.unit].split(" ")
        for number, part in enumerate([before, *parts]):
            new = new or number > 0
            if part:
                if new:
                    words.append(("", []))
                text, members = words.pop()
                words.append((text + part, [*members, span]))
                new = False
    return [
        Word(
            text,
            members[0].start * frame_seconds,
            members[-1].end * frame_seconds,
            float(np.mean([one.posterior for one in members])),
        )
        for text, members in words
    ]


def ctm(words: Mapping[str, Sequence[Word]]) -> str:
    """NIST CTM: a line for each word of each recording: name, channel 1, start, duration, word, confidence.

    Raises ValueError when a name holds a space, which parts the fields.
    """
    odd = [name for name in words if name.split() != [name]]
    if odd:
        raise ValueError(f"the name {odd[0]!r} is empty or holds a space; CTM has none")
    lines = [
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n"
        for name, found in words.items()
        for word in found
    ]
    return "".join(lines)


def textgrid(words: Sequence[Word], seconds: float, tier: str = "words") -> str:
    """A Praat TextGrid of one interval tier: the words, and empty intervals between them to the end."""
    intervals: list[tuple[float, float, str]] = []
    at = 0.0
    for word in words:
        if word.start > at:
            intervals.append((at, word.start, ""))
        intervals.append((word.start, word.end, word.text))
        at = word.end
    end = max(seconds, at)
    intervals += [(at, end, "")] if end > at or not intervals else []
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.6f}"]
    lines += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"']
    lines += [f"        name = {_quoted(tier)}", "        xmin = 0", f"        xmax = {end:.6f}"]
    lines += [f"        intervals: size = {len(intervals)}"]
    for number, (start, stop, text) in enumerate(intervals, start=1):
        lines += [f"        intervals [{number}]:", f"            xmin = {start:.6f}", f"            xmax = {stop:.6f}"]
        lines += [f"            text = {_quoted(text)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
