"""Frames of a long recording in pieces that a search takes one at a time."""

from collections.abc import Iterable, Iterator

import numpy as np


def cut_at_pauses(parts: Iterable[np.ndarray], most: int, blank: int = 0) -> Iterator[np.ndarray]:
    """Log-probabilities (T, V) as they come -> the same in pieces of at most ``most`` frames, cut where it is silent.

    A cut is in the middle of the longest run of blanks in the second half of what fits into a piece; without any, at
    the frame where the blank is most probable.
    """
    held = None
    for part in parts:
        held = part if held is None else np.concatenate([held, part])
        while len(held) > most:
            at = most // 2 + _pause(held[most // 2 : most], blank)
            yield held[:at]
            held = held[at:]
    if held is not None and len(held):
        yield held


def _pause(log_probs: np.ndarray, blank: int) -> int:
    """The frame in the middle of the longest run of blanks, from 1 on, so that a piece is never empty."""
    is_blank = np.concatenate([[False], log_probs.argmax(axis=-1) == blank, [False]])
    edges = np.flatnonzero(is_blank[1:] != is_blank[:-1])
    if not len(edges):
        return max(1, int(log_probs[:, blank].argmax()))
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    return max(1, int(starts[longest] + ends[longest]) // 2)
