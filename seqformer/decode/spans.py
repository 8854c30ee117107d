"""Greedy CTC decoding of frames that come piece by piece, with the frames of every unit."""

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """A unit and the first and the last frame where it was the best."""

    unit: int
    first: int
    last: int


class Spans:
    """``found``: repeats merged, blanks dropped, as ``collapse`` does, of all best units pushed so far."""

    def __init__(self, blank: int = 0):
        self.found: list[Span] = []
        self.frames, self.blank, self.previous = 0, blank, blank

    def push(self, units: Iterable[int]) -> None:
        """Add the best units of the next frames."""
        for unit in units:
            if unit != self.blank:
                first = self.found.pop().first if unit == self.previous else self.frames
                self.found.append(Span(unit, first, self.frames))
            self.previous = unit
            self.frames += 1
