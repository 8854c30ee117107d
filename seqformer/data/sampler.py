"""Batches of like lengths under a budget of frames, the same for any number of workers and after any restart."""

from typing import Any

import numpy as np

from seqformer.errors import InputError

WIDTH = 0.02  # of the lengths, as a share, within which batches are filled by units


def plan_dataset(
    dataset: Any,
    data: Any,
    epoch: int,
    seed: list[int] | None = None,
    world: int = 1,
    rows: np.ndarray | None = None,
    multiple: int = 1,
) -> list[np.ndarray]:
    """``plan_batches`` of an epoch of a dataset, or of some ``rows`` of it, as the ``data`` section of a config says.

    Lengths count as the next ``multiple`` of frames, where batches are padded to it.
    Raises InputError when the budget needs what the dataset does not know: a rate, or units to train on.
    """
    frames, units = dataset.frames(epoch), getattr(dataset, "units", None) if data.batch_units else None
    if data.batch_units and units is None and seed is not None:
        raise InputError("data.batch_units needs a target of text, in a dataset that knows how many units each has")
    if rows is not None:
        frames, units = frames[rows], None if units is None else units[rows]
    frames = -(-np.asarray(frames, dtype=np.int64) // multiple) * multiple
    budget, quadratic = frame_budget(data, dataset.rate), in_frames(data, data.quadratic or 0, dataset.rate)
    return plan_batches(frames, budget, data.max_items, seed, epoch, world, quadratic, units, data.batch_units)


def plan_batches(
    frames: np.ndarray,
    budget: int,
    max_items: int,
    seed: list[int] | None = None,
    epoch: int = 0,
    world: int = 1,
    quadratic: int = 0,
    units: np.ndarray | None = None,
    max_units: int | None = None,
) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch; padded batch size (longest x items) stays within ``budget`` frames.

    With ``quadratic``, a row of L frames counts as L + L^2 / quadratic, for what grows with the square of a length;
    with ``units`` (rows,) of the targets, most units x items stay within ``max_units`` as well, and rows of about the
    same length meet others with about as many units.

    With a seed, rows of about the same length meet in random company and batches come in random order, both pure
    functions of (seed, epoch); without one, batches run from long to short (validation: the largest first). A row
    longer than the budget is a batch of its own.

    ``world`` processes stay in step: they take one batch each at a time, ``batches[rank::world]``, as many as the
    others. The rows of one such step are dealt out one by one from long to short, so that its batches have as many
    items of the same lengths, and no process waits for another. Each row is in one batch; only where there are too few
    rows for the steps that the budget asks for, the last step's batches are repeated.
    """
    if not len(frames):
        raise InputError("no rows to make batches of")
    frames = np.asarray(frames, dtype=np.int64)  # unsigned ones have no negatives to sort by
    longest_first = -frames
    if seed is not None:
        rng = np.random.default_rng([*seed, epoch])
        # 6 % of noise on the length: it costs about 3 % of padding, and company changes with every epoch.
        longest_first = longest_first * rng.uniform(0.97, 1.03, len(frames))
    limits = [(frames + (frames**2 // quadratic if quadratic else 0), budget)]
    if units is None:
        order = np.argsort(longest_first, kind="stable")
    else:
        units = np.asarray(units, dtype=np.int64)
        order = _by_length_and_units(-longest_first, units)
        limits.append((units, max_units))
    steps = np.split(order, _cut([(values[order], most) for values, most in limits], max_items, world))
    if seed is not None:
        rng.shuffle(steps)
    return [batch for step in steps for batch in _dealt(step, world)]


def _by_length_and_units(lengths: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Rows from long to short, those within ``WIDTH`` by their units: up, in the next such group down, and so on.

    So rows that follow each other have about as many units, across the border of two groups too.
    """
    groups = -np.floor(np.log(np.maximum(lengths, 1)) / WIDTH).astype(np.int64)
    return np.lexsort((np.where(groups % 2, units, -units), groups))


def _cut(limits: list[tuple[np.ndarray, int]], max_items: int, world: int) -> np.ndarray:
    """Where the steps after the first begin: as many items in each batch as all limits allow.

    A limit is what each row has, in order, and how much of it a batch may have with all rows padded to the most.
    """
    starts, items, rows = [], np.arange(1, max_items + 1), len(limits[0][0])
    end = 0
    while end < rows:
        starts.append(end)
        last, most = np.minimum(world * items, rows - end) - 1, max_items
        for values, limit in limits:
            longest = np.maximum.accumulate(values[end : end + world * max_items])
            most = min(most, int((longest[last] * items <= limit).sum()))
        end += world * max(1, most)
    # What is left for the last step may be less than a row for each process: it takes some of the step before, which
    # then takes some of its own, down to one row for each. Fewer rows in a batch are never above the budget.
    fewest = rows - world * np.arange(len(starts), 0, -1)
    return (np.minimum(starts, fewest) if fewest[0] >= 0 else np.array(starts))[1:]


def _dealt(step: np.ndarray, world: int) -> list[np.ndarray]:
    """The batches of the processes in one step."""
    shares = [step[rank::world] for rank in range(min(world, len(step)))]
    return [shares[rank % len(shares)] for rank in range(world)]


def padding_share(frames: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the frames (or target units) of all batches that is padding."""
    padded = sum(int(frames[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(frames[batch].sum()) for batch in batches) / padded


def frame_budget(data, rate: int | None) -> int:
    """Padded frames a batch may have, from ``batch_frames`` or from ``batch_seconds`` and the frame rate (Hz).

    Raises InputError when seconds are given and the rate is not known.
    """
    if data.batch_frames:
        return data.batch_frames
    if not rate:
        raise InputError("data.batch_seconds needs a rate in the manifest; give data.batch_frames instead")
    return in_frames(data, data.batch_seconds, rate)


def in_frames(data: Any, length: float, rate: int | None) -> int:
    """A length in the unit of the budget, frames or seconds, as frames; at least 1, but for 0."""
    return max(bool(length), round(length if data.batch_frames else length * rate))
