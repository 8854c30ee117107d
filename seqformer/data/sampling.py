"""Which rows an epoch trains on: a pure function of (seed, epoch), the same for any number of workers and processes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.manifest import as_text, plain_text
from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars


def scheduled(schedule: Sequence[tuple[int, float]], epoch: int) -> float:
    """The value of the last ``(first epoch, value)`` that has begun; the schedule begins at epoch 0."""
    return [value for first, value in schedule if first <= epoch][-1]


class RowSampler:
    """Draws the rows of each epoch from the training rows of a fold, as a ``Sampling`` of the config says.

    Rows that match ``until.where`` are left out from epoch ``until.epoch`` on. Of the rows that match ``once_where``
    one is drawn for each value of ``once_per``, with equal chances; an empty value stands for itself. What is left is
    drawn from: uniformly without replacement (all of it, or ``items``, none twice before all once), or with replacement
    and chances weight ** power where the power of the epoch is not 0.

    Raises InputError on an unknown column or value, a weight that is no number from 0, or where no row is left.
    """

    def __init__(self, table: "polars.DataFrame", sampling: Any, seed: list[int]):
        self.sampling, self.seed, self.rows = sampling, seed, table.height
        self.weight = None if sampling.weight is None else _weights(table, sampling)
        self.dropped = np.zeros(table.height, dtype=bool)
        if sampling.until is not None:
            self.dropped = _matching(table, sampling.until.where, "sampling.until.where")
            if self.dropped.all():
                raise InputError(f"sampling.until: no training row is left from epoch {sampling.until.epoch} on")
        self.values, self.once = None, np.zeros(table.height, dtype=bool)
        if sampling.once_per is not None:
            names = as_text(_column(table, sampling.once_per, "sampling.once_per"))
            self.values = names.fill_null("").to_numpy().astype(str)
            self.once = _matching(table, sampling.once_where, "sampling.once_where") & ~names.is_null().to_numpy()

    def __call__(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch, a row drawn twice there twice."""
        rng = np.random.default_rng([*self.seed, epoch, 1])  # not the draws of the batch planner
        candidates = self._candidates(epoch, rng)
        power = scheduled(self.sampling.power, epoch) if self.weight is not None else 0.0
        items = self.sampling.items or len(candidates)
        if power:
            chances = self.weight[candidates] ** power
            if not chances.sum() > 0:
                raise InputError(f"sampling.weight: column {self.sampling.weight!r} is 0 in all rows of epoch {epoch}")
            return rng.choice(candidates, items, p=chances / chances.sum())
        whole, rest = divmod(items, len(candidates))
        return np.concatenate([*[candidates] * whole, rng.choice(candidates, rest, replace=False)])

    def _candidates(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        keep = np.ones(self.rows, dtype=bool)
        if self.sampling.until is not None and epoch >= self.sampling.until.epoch:
            keep = ~self.dropped
        once = np.flatnonzero(keep & self.once)
        if len(once):
            shuffled = rng.permutation(once)
            _, first = np.unique(self.values[shuffled], return_index=True)
            keep[once] = False
            keep[shuffled[first]] = True
        return np.flatnonzero(keep)


def count_repeats(rows: np.ndarray) -> np.ndarray:
    """How often each entry came before: [5, 7, 5, 5] -> [0, 0, 1, 2]."""
    order = np.argsort(rows, kind="stable")
    _, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = np.arange(len(rows)) - np.repeat(first, counts)
    return found


def _column(table: "polars.DataFrame", name: str, key: str) -> "polars.Series":
    if name not in table.columns:
        raise InputError(f"{key}: the manifest has no column {name!r}; {nearest(name, table.columns)}")
    return table[name]


def _matching(table: "polars.DataFrame", where: dict[str, Any], key: str) -> np.ndarray:
    """True (rows,) where the columns hold one of the given values."""
    found = np.ones(table.height, dtype=bool)
    for name, value in where.items():
        wanted = [plain_text(item) for item in (value if isinstance(value, list | tuple) else [value])]
        held = as_text(_column(table, name, key)).is_in(wanted).fill_null(False).to_numpy()
        if not held.any():
            present = as_text(table[name]).drop_nulls().unique().to_list()
            raise InputError(f"{key}: no training row has {name} = {first_few(wanted)}; {nearest(wanted[0], present)}")
        found &= held
    return found


def _weights(table: "polars.DataFrame", sampling: Any) -> np.ndarray:
    """Weights (rows,), the largest 1, so that no power of them overflows."""
    column = _column(table, sampling.weight, "sampling.weight")
    if not column.dtype.is_numeric():
        raise InputError(f"sampling.weight: column {column.name!r} holds {column.dtype}; expected numbers")
    weight = column.cast(float).fill_null(float("nan")).to_numpy()
    lowest = min(power for _, power in sampling.power)
    bad = ~(np.isfinite(weight) & ((weight > 0) if lowest < 0 else (weight >= 0)))
    if bad.any():
        wanted = "above 0, for a power below 0" if lowest < 0 else "0 or more"
        raise InputError(
            f"sampling.weight: {column.name!r} must be {wanted}, but not in {first_few(table['id'].filter(bad))}"
        )
    if not weight.any():
        raise InputError(f"sampling.weight: column {column.name!r} is 0 in every training row")
    return weight / (weight.max() if lowest >= 0 else weight.min())
