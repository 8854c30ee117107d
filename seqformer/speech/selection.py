"""Which of a teacher's labels a student is trained on: by score, by pace, and by the tokens that they bring.

Source: Park et al. 2020, "Improved Noisy Student Training for ASR" (arXiv 2005.09629), normalised filtering and
balancing. Two things differ. The paper fits the line of score and length on a labelled development set; here that would
be rows which a fold validates, so the line is that of the labels themselves, and a score says how sure the teacher is
of a row beside its others. And the paper draws rows that bring the tokens nearer to the wanted ones; here rows that
keep them away are left out, which needs no size of the result to aim for.
"""

import numpy as np

AT_ONCE = 4096  # rows of counts whose logarithms are in memory together


def length_scores(scores: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(n,) log-probabilities of texts and their units -> (n,) deviations from what is usual for their length.

    (S - mu l - beta) / (sigma sqrt(l)): the line is fitted by least squares, sigma is the deviation of what is left,
    each divided by sqrt(l), as for sums of l independent terms. A text without units gets -inf; where all lie on the
    line the others get 0.
    """
    scores, units = np.asarray(scores, np.float64), np.asarray(units, np.float64)
    found, some = np.full(len(scores), -np.inf), units > 0
    if not some.any():
        return found
    design = np.stack([units[some], np.ones(some.sum())], axis=1)
    line, *_ = np.linalg.lstsq(design, scores[some], rcond=None)
    left = (scores[some] - design @ line) / np.sqrt(units[some])
    sigma = left.std()
    found[some] = left / sigma if sigma > 1e-9 * np.abs(scores[some]).max() else 0.0  # less is rounding
    return found


def in_pace(pace: np.ndarray, usual: np.ndarray, slack: float) -> np.ndarray:
    """(n,) bool: units a second from the least to the most of the ``usual`` ones, both widened by a factor."""
    return (pace >= usual.min() / slack) & (pace <= usual.max() * slack)


def divergence(wanted: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """KL(wanted || found) in nats, one more of each unit found so that none is 0: counts (V,) and (..., V) -> (...)."""
    share = wanted / wanted.sum()
    entropy = (share * np.log(np.where(share > 0, share, 1))).sum()
    return entropy - np.log(counts + 1) @ share + np.log(counts.sum(axis=-1) + counts.shape[-1])


def balanced(counts: np.ndarray, wanted: np.ndarray, least: int, rounds: int = 64) -> np.ndarray:
    """Rows to keep (n,) bool, so that their units are distributed more as the ``wanted`` ones.

    ``counts`` (n, V) are units of each row, ``wanted`` (V,) of the labelled texts. Again and again the row goes without
    which the rest is nearest (``divergence``), as long as that is nearer than before and more than ``least`` rows are
    left. Of n rows, n / ``rounds`` go at a time where together they bring it nearer too, or half as many, down to one.
    """
    keep, total = np.arange(len(counts)), counts.sum(axis=0)
    gap, size = divergence(wanted, total), max(1, len(counts) // rounds)
    while len(keep) > least:
        after = np.concatenate(
            [divergence(wanted, total - counts[keep[i : i + AT_ONCE]]) for i in range(0, len(keep), AT_ONCE)]
        )
        order = np.argsort(after, kind="stable")[: min(size, len(keep) - least)]
        order = order[after[order] < gap]
        rest = total - counts[keep[order]].sum(axis=0)
        nearer = divergence(wanted, rest)
        if len(order) and nearer < gap:
            keep, total, gap = np.delete(keep, order), rest, nearer
        elif len(order) and size > 1:
            size //= 2
        else:
            break
    return np.isin(np.arange(len(counts)), keep)
