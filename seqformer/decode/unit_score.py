"""A guide of the prefix beam search, asked as the search of a transducer asks: what a unit adds behind a whole text."""

from collections.abc import Iterable

from seqformer.decode.prefix_beam import Guide, Hypothesis


class UnitScore:
    """``score(units, unit)`` -> what the guide says of the unit behind the others; each text is asked about once."""

    def __init__(self, guide: Guide):
        self.guide = guide
        self.known = {(): (0.0, 0.0, guide.start())}  # text -> what its last unit added, all of them, the state then

    def __call__(self, units: tuple[int, ...], unit: int) -> float:
        longer = (*units, unit)
        if longer not in self.known:
            _, added, state = self.known[units]
            gain, state = self.guide.extend(state, unit)
            self.known[longer] = gain, added + gain, state
        return self.known[longer][0]

    def total(self, units: tuple[int, ...]) -> float:
        """What all units of a text that was asked about add, and its end."""
        _, added, state = self.known[units]
        return added + self.guide.finish(state)


def guided(found: Iterable[tuple[tuple[int, ...], float]], score: UnitScore | None) -> list[Hypothesis]:
    """Texts and their log-probabilities as the prefix beam search gives them: with what the guide adds, sorted."""
    texts = [Hypothesis(list(units), log_p, log_p + (score.total(units) if score else 0.0)) for units, log_p in found]
    return sorted(texts, key=lambda one: -one.score)
