"""Greedy CTC decoding of frames that come piece by piece, with the frames of every unit."""

from torch import Tensor

from seqformer.decode.align import Span


class GreedyReader:
    """``found``: repeats merged, blanks dropped, as ``collapse`` does, of all frames pushed so far."""

    def __init__(self, blank: int = 0):
        self.found: list[Span] = []
        self.frames, self.blank, self.previous = 0, blank, blank

    def push(self, logits: Tensor) -> None:
        """Read the next frames, logits or log-probabilities (T, V)."""
        posteriors, best = logits.float().softmax(dim=-1).max(dim=-1)
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
