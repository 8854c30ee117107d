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
    functions of (seed, epoch); without one, batches run from long to short (validation: the largest first). The number
    of batches is a multiple of ``world``, so that processes stay in step; the last ones are repeated for that.
    A row longer than the budget is a batch of its own.
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
    batches = _cut(order, frames, budget, max_items)
    if seed is not None:
        rng.shuffle(batches)
    while len(batches) % world:
        batches.append(batches[len(batches) % world - 1])
    return batches


def _cut(order: np.ndarray, frames: np.ndarray, budget: int, max_items: int) -> list[np.ndarray]:
    batches, start, longest = [], 0, 0
    for end, row in enumerate(order):
        longest_with = max(longest, int(frames[row]))
        if end > start and (longest_with * (end + 1 - start) > budget or end - start == max_items):
            batches.append(order[start:end])
            start, longest_with = end, int(frames[row])
        longest = longest_with
    batches.append(order[start:])
    return batches


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
