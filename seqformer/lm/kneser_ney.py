"""Interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3): n-gram models of text, written as ARPA files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from seqformer.errors import InputError
from seqformer.lm.ngram import BEGIN, END, LOG_10, ROWS, UNITS, UNKNOWN, NGram, State, text_tokens

FALLBACK = (0.5, 1.0, 1.5)  # discounts of a text too small to have n-grams of every count from 1 to 4
NEVER = -99.0  # log10 p of <s>, which is only ever a context


def train_kneser_ney(texts: Iterable[str], order: int = 4, units: str = "words") -> NGram:
    """The model of texts, one sentence each; tokens are "words" or "chars".

    Raises InputError when the order is below 1, there is no text, or a text holds a token with a meaning of its own.
    """
    if order < 1:
        raise InputError(f"order {order}; expected 1 or more")
    counts = _count(texts, order, units)
    discounts = [_discounts(found) for found in counts]
    below = _unigrams(counts[0], discounts[0])
    probabilities, weights = [below], []
    for found, discount in zip(counts[1:], discounts[1:], strict=True):
        below, weight = _interpolate(found, discount, below)
        probabilities.append(below)
        weights.append(weight)
    weights.append({})
    if order > 1:
        probabilities[0] = probabilities[0] | {(BEGIN,): 10.0**NEVER}
    return NGram([_entries(*pair) for pair in zip(probabilities, weights, strict=True)], units)


def _entries(probabilities: dict[State, float], weights: dict[State, float]) -> dict[State, tuple[float, float]]:
    return {key: (math.log(p), math.log(weights.get(key, 1.0))) for key, p in probabilities.items()}


def _count(texts: Iterable[str], order: int, units: str) -> list[Counter[State]]:
    """What each order is estimated from: counts at the highest; below, how many different tokens come before.

    Nothing comes before <s>, so that n-grams which begin with it keep their counts (section 3).
    """
    raw: list[Counter[State]] = [Counter() for _ in range(order)]
    for number, text in enumerate(texts, start=1):
        tokens = text_tokens(text, units)
        odd = {BEGIN, END, UNKNOWN}.intersection(tokens)
        if odd:
            raise InputError(f"text {number} holds {min(odd)}, which has a meaning of its own in a language model")
        line = (BEGIN, *tokens, END)
        for n, counter in enumerate(raw, start=1):
            counter.update(line[i : i + n] for i in range(len(line) - n + 1))
    if not raw[0]:
        raise InputError("there is no text to train a language model on")
    for n in range(order - 1):
        before = Counter(key[1:] for key in raw[n + 1])
        raw[n] = Counter({key: raw[n][key] if key[0] == BEGIN else before[key] for key in raw[n]})
    raw[0].pop((BEGIN,))
    return raw


def _discounts(counts: Counter[State]) -> tuple[float, float, float]:
    """What is taken from n-grams counted once, twice, and three times or more."""
    often = Counter(counts.values())
    if not all(often[i] for i in (1, 2, 3, 4)):
        return FALLBACK
    share = often[1] / (often[1] + 2 * often[2])
    found = tuple(i - (i + 1) * share * often[i + 1] / often[i] for i in (1, 2, 3))
    return found if all(0 < one <= i for i, one in enumerate(found, start=1)) else FALLBACK


def _unigrams(counts: Counter[State], discounts: tuple[float, float, float]) -> dict[State, float]:
    """What is taken from the tokens goes to all, the unknown one included, in equal shares."""
    total, taken = counts.total(), sum(discounts[min(count, 3) - 1] for count in counts.values())
    share = taken / total / (len(counts) + 1)
    found = {key: (count - discounts[min(count, 3) - 1]) / total + share for key, count in counts.items()}
    return found | {(UNKNOWN,): share}


def _interpolate(
    counts: Counter[State], discounts: tuple[float, float, float], below: dict[State, float]
) -> tuple[dict[State, float], dict[State, float]]:
    """Probabilities of n-grams, mixed with those of the order below, and the weight of that order in each context."""
    total, taken = defaultdict(int), defaultdict(float)
    for key, count in counts.items():
        total[key[:-1]] += count
        taken[key[:-1]] += discounts[min(count, 3) - 1]
    weights = {context: taken[context] / total[context] for context in total}
    found = {
        key: (count - discounts[min(count, 3) - 1]) / total[key[:-1]] + weights[key[:-1]] * below[key[1:]]
        for key, count in counts.items()
    }
    return found, weights


def write_arpa(model: NGram, path: Path) -> None:
    """Write a model that ``read_arpa`` gives back, sorted, so that equal models are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in arpa_lines(model))


def arpa_lines(model: NGram) -> Iterator[str]:
    yield f"{UNITS}{model.units}"
    if model.rows is not None:
        yield f"{ROWS}{model.rows}"
    yield "\\data\\"
    for n, entries in enumerate(model.entries, start=1):
        yield f"ngram {n}={len(entries)}"
    for n, entries in enumerate(model.entries, start=1):
        yield f"\n\\{n}-grams:"
        for key in sorted(entries):
            log_p, weight = entries[key]
            back_off = "" if n == model.order else f"\t{weight / LOG_10:.7f}"
            yield f"{log_p / LOG_10:.7f}\t{' '.join(key)}{back_off}"
    yield "\n\\end\\"
