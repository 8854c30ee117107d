"""One text out of several."""

from collections.abc import Sequence


def consensus(texts: Sequence[str]) -> str:
    """The text with the least word edits to all others (minimum Bayes risk over the candidates); the first on a tie.

    Folds may have tokenizers of their own, fitted on their own training rows, so their frames cannot be averaged.
    """
    from rapidfuzz.distance import Levenshtein

    words = [text.split() for text in texts]
    risks = [sum(Levenshtein.distance(candidate, other) for other in words) for candidate in words]
    return texts[risks.index(min(risks))]
