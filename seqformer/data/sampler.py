"""Batches of like lengths under a budget of frames, the same for any number of workers and after any restart."""

import numpy as np

from seqformer.errors import InputError


def plan_batches(
    frames: np.ndarray,
    budget: int,
    max_items: int,
    seed: list[int] | None = None,
    epoch: int = 0,
    world: int = 1,
) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch; padded batch size (longest x items) stays within ``budget`` frames.

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
    if seed is None:
        order = np.argsort(-frames, kind="stable")
    else:
        rng = np.random.default_rng([*seed, epoch])
        # 6 % of noise on the length: it costs about 3 % of padding, and company changes with every epoch.
        order = np.argsort(-frames * rng.uniform(0.97, 1.03, len(frames)), kind="stable")
    steps = _cut(order, frames[order], budget, max_items, world)
    if seed is not None:
        rng.shuffle(steps)
    return [batch for step in steps for batch in _dealt(step, world)]


def _cut(order: np.ndarray, frames: np.ndarray, budget: int, max_items: int, world: int) -> list[np.ndarray]:
    """Rows in ``order``, of ``frames`` each, cut into steps: as many items in each batch as the budget allows."""
    starts, items = [], np.arange(1, max_items + 1)
    end = 0
    while end < len(order):
        starts.append(end)
        longest = np.maximum.accumulate(frames[end : end + world * max_items])
        last = np.minimum(world * items, len(longest)) - 1
        end += min(world * max(1, int((longest[last] * items <= budget).sum())), len(longest))
    # What is left for the last step may be less than a row for each process: it takes some of the step before, which
    # then takes some of its own, down to one row for each. Fewer rows in a batch are never above the budget.
    fewest = len(order) - world * np.arange(len(starts), 0, -1)
    return np.split(order, (np.minimum(starts, fewest) if fewest[0] >= 0 else np.array(starts))[1:])


def _dealt(step: np.ndarray, world: int) -> list[np.ndarray]:
    """The batches of the processes in one step."""
    shares = [step[rank::world] for rank in range(min(world, len(step)))]
    return [shares[rank % len(shares)] for rank in range(world)]


def padding_share(frames: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the frames of all batches that is padding."""
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
    return max(1, round(data.batch_seconds * rate))
