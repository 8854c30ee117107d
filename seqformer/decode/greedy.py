"""Greedy CTC decoding."""

from torch import Tensor


def collapse(units: Tensor, mask: Tensor, blank: int = 0) -> list[list[int]]:
    """Best units (B, T), mask (B, T) -> unit sequences: repeats merged, blanks dropped.

    Vectorised over the batch: one transfer to the host in all, not one per frame.
    """
    keep = mask & (units != blank)
    keep[:, 1:] &= units[:, 1:] != units[:, :-1]
    counts, flat = keep.sum(dim=1).tolist(), units[keep].tolist()
    sequences, start = [], 0
    for count in counts:
        sequences.append(flat[start : start + count])
        start += count
    return sequences
