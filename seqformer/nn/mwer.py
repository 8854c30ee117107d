"""Minimum word error rate training (Prabhavalkar et al. 2018, arXiv 1712.01818) over the best texts of a search.

Axes: B batch, N texts of an item, U units.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NEVER = -1e30  # the log of a probability of 0; an infinity would make a softmax over nothing NaN


def mwer(
    nll: Callable[[Tensor], Tensor],
    texts: Sequence[Sequence[Sequence[int]]],
    targets: Tensor,
    spellings: Sequence[str] | None = None,
) -> Tensor:
    """Texts (units) that a search found for each item, targets (B, U) padded with -1 -> expected word errors (B,).

    ``nll(units (B, U))`` is -log p(units) (B,) of the model, whose gradient is followed; an item with fewer texts than
    others is asked for empty ones, which do not count. What a unit adds to a text is ``spellings[unit]``; without them
    each unit is a word.
    """
    units, real = padded(texts, targets.device)
    errors = torch.zeros(real.shape)
    for item, (found, target) in enumerate(zip(texts, targets.tolist(), strict=True)):
        truth = [unit for unit in target if unit >= 0]
        errors[item, : len(found)] = torch.tensor([float(word_errors(one, truth, spellings)) for one in found])
    log_p = [-nll(one) for one in units.unbind(dim=1)]  # one after another: a text takes as much memory as a target
    return expected_errors(torch.stack(log_p, dim=1), errors.to(targets.device), real)


def expected_errors(log_p: Tensor, errors: Tensor, real: Tensor) -> Tensor:
    """log_p, errors and which texts there are, all (B, N) -> (B,): errors less their mean, expected (equation 5).

    The probabilities are those of the N texts alone, and sum to 1: the mean leaves the gradient as it is, and makes the
    loss say what a search gains over any text of its list. With one text, or none, it is 0 with a gradient of 0.
    """
    share = log_p.masked_fill(~real, NEVER).softmax(dim=1)
    errors = errors.to(log_p.dtype).masked_fill(~real, 0)
    mean = errors.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return (share * (errors - mean).masked_fill(~real, 0)).sum(dim=1)


def padded(texts: Sequence[Sequence[Sequence[int]]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Units (B, N, U) of up to N texts of each item, padded with -1, and which texts there are (B, N)."""
    most = max((len(found) for found in texts), default=0)
    longest = max((len(units) for found in texts for units in found), default=0)
    units = torch.full((len(texts), max(most, 1), longest), -1)
    real = torch.zeros(units.shape[:2], dtype=torch.bool)
    for item, found in enumerate(texts):
        real[item, : len(found)] = True
        for number, one in enumerate(found):
            units[item, number, : len(one)] = torch.tensor(one, dtype=units.dtype)
    return units.to(device), real.to(device)


def word_errors(units: Sequence[int], truth: Sequence[int], spellings: Sequence[str] | None = None) -> int:
    """Insertions, deletions and substitutions of words between two texts of units."""
    from rapidfuzz.distance import Levenshtein

    one, two = units, truth
    if spellings is not None:
        one, two = ("".join(spellings[unit] for unit in text).split() for text in (units, truth))
    return Levenshtein.distance(one, two)
