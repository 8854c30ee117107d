"""Greedy CTC decoding of frames that come piece by piece, with the frames of every unit."""

import numpy as np

from seqformer.decode.align import Span


class Spans:
    """``found``: repeats merged, blanks dropped, as ``collapse`` does, of all frames pushed so far."""

    def __init__(self, blank: int = 0):
        self.found: list[Span] = []
        self.frames, self.blank, self.previous = 0, blank, blank

    def push(self, log_probs: np.ndarray) -> None:
        """Add the next frames (T, V)."""
        best = log_probs.argmax(axis=-1)
        posteriors = np.exp(np.take_along_axis(log_probs, best[:, None], axis=-1)[:, 0])
        for unit, posterior in zip(best.tolist(), posteriors.tolist(), strict=True):
            if unit != self.blank:
                start, mean = self.frames, 0.0
                if unit == self.previous:
                    _, start, _, mean = self.found.pop()
                before = self.frames - start
                mean = (mean * before + posterior) / (before + 1)
                self.found.append(Span(unit, start, self.frames + 1, mean))
            self.previous = unit
            self.frames += 1
