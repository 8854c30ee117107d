"""Batches: every row once an epoch, within the budget, the same after any restart, with little padding."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqformer import InputError
from seqformer.data.sampler import frame_budget, padding_share, plan_batches

quick = settings(max_examples=300, deadline=None, derandomize=True)
PLANS = {
    "frames": st.lists(st.integers(1, 400), min_size=1, max_size=80),
    "budget": st.integers(1, 1500),
    "max_items": st.integers(1, 20),
    "seed": st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=2),
    "epoch": st.integers(0, 5),
    "world": st.integers(1, 8),
}


def utterances(rows: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of LibriSpeech: 1 to 35 s, most at 12 s, in samples."""
    seconds = np.random.default_rng(seed).lognormal(np.log(12), 0.45, rows).clip(1, 35)
    return (seconds * 16_000).astype(np.int64)


@quick
@given(**PLANS)
def test_any_plan(frames, budget, max_items, seed, epoch, world):
    """As many batches for each process, within the budget, each row once wherever a row for each process is left."""
    lengths = np.array(frames)
    batches = plan_batches(lengths, budget, max_items, seed, epoch, world)
    assert len(batches) % world == 0
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    steps = len(batches) // world
    rows = np.concatenate(batches).tolist()
    if world * steps <= len(lengths):
        assert sorted(rows) == list(range(len(lengths)))
    else:  # repeats in one step only, which is short
        assert set(rows) == set(range(len(lengths))) and len(rows) - len(lengths) < world
        short = [
            step for step in range(steps) if len({row for b in batches[step * world :][:world] for row in b}) < world
        ]
        assert len(short) == 1
    if seed is None:
        longest = [lengths[batch].max() for batch in batches[::world]]
        assert longest == sorted(longest, reverse=True) and longest[0] == lengths.max()


@quick
@given(**PLANS, quadratic=st.integers(0, 500), max_units=st.integers(1, 300))
def test_any_plan_with_more_limits(frames, budget, max_items, seed, epoch, world, quadratic, max_units):
    """Within every limit at once, each row once, and one more row of the next ones would be above one of them."""
    lengths, units = np.array(frames), np.random.default_rng(0).integers(0, 60, len(frames))
    batches = plan_batches(lengths, budget, max_items, seed, epoch, world, quadratic, units, max_units)
    costs = lengths + (lengths**2 // quadratic if quadratic else 0)
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        within = costs[batch].max() * len(batch) <= budget and units[batch].max() * len(batch) <= max_units
        assert len(batch) == 1 or within
    assert set(np.concatenate(batches).tolist()) == set(range(len(lengths))) and len(batches) % world == 0
    if world == 1 and seed is None:
        for first, second in pairwise(batches):
            more = np.append(first, second[0])
            over = costs[more].max() * len(more) > budget or units[more].max() * len(more) > max_units
            assert over or len(first) == max_items


def test_batches_are_alike_in_units_too():
    frames = utterances(20_000)
    units = (frames / 16_000 * np.random.default_rng(1).normal(14, 3, len(frames))).clip(1, None).astype(int)
    wide = {"units": units, "max_units": 10**6}
    plain, both, again = (
        plan_batches(frames, 160 * 16_000, 512, [0], epoch, **more) for epoch, more in ((0, {}), (0, wide), (1, wide))
    )
    assert padding_share(frames, both) <= 0.04 and padding_share(units, both) < 0.05 < 0.2 < padding_share(units, plain)
    same = {tuple(sorted(batch)) for batch in both} & {tuple(sorted(batch)) for batch in again}
    assert len(same) < 0.01 * len(both)  # the noise on the length brings other company here as well


def test_a_square_takes_long_rows_apart():
    """Lhotse's quadratic_duration: a row of that length counts twice."""
    frames = np.repeat([20, 10, 5], 12)
    sizes = [len(batch) for batch in plan_batches(frames, 60, 99, quadratic=20)]
    assert sizes == [1] * 12 + [4] * 3 + [10, 2]


@quick
@given(**PLANS)
def test_batches_of_a_step_are_alike(frames, budget, max_items, seed, epoch, world):
    """Dealt one by one: item counts differ by one at most, and a process's k-th longest is within its neighbours'."""
    lengths = np.array(frames)
    batches = plan_batches(lengths, budget, max_items, seed, epoch, world)
    for start in range(0, len(batches), world):
        step = batches[start : start + world]
        assert max(map(len, step)) - min(map(len, step)) <= 1
        if seed is None:
            for first, second in pairwise(step):
                count = min(len(first), len(second))
                assert (lengths[second][:count] <= lengths[first][:count]).all() or len(set(map(tuple, step))) < world
                assert (lengths[first][1:] <= lengths[second][: len(first) - 1]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.uint64, np.uint8])
def test_the_type_of_the_lengths_does_not_matter(dtype):
    frames = np.random.default_rng(0).integers(1, 200, 300)
    for seed in (None, [0, 1]):
        wanted, found = (plan_batches(lengths, 2000, 50, seed) for lengths in (frames, frames.astype(dtype)))
        assert [batch.tolist() for batch in found] == [batch.tolist() for batch in wanted]


def test_seed_and_epoch_decide():
    frames = utterances(500)

    def plan(seed, epoch):
        return [batch.tolist() for batch in plan_batches(frames, 120 * 16_000, 64, seed, epoch)]

    assert plan([0, 1], 3) == plan([0, 1], 3)
    others = [plan([0, 1], 4), plan([0, 2], 3), plan([1, 1], 3)]
    for other in others:
        assert other != plan([0, 1], 3)
        # rows meet other rows too, not only in another order
        assert len({tuple(sorted(batch)) for batch in other} & {tuple(sorted(b)) for b in plan([0, 1], 3)}) < 0.1 * len(
            other
        )


def test_the_global_random_state_plays_no_part():
    frames = utterances(100)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first = plan_batches(frames, 10**6, 64, [0], 0)
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    np.random.seed(1)
    assert [b.tolist() for b in plan_batches(frames, 10**6, 64, [0], 0)] == [b.tolist() for b in first]


@pytest.mark.parametrize("batch_seconds, most", [(60, 0.03), (120, 0.04), (240, 0.05), (480, 0.05)])
def test_little_is_padding(batch_seconds, most):
    frames, budget = utterances(10_000), batch_seconds * 16_000
    shares = [padding_share(frames, plan_batches(frames, budget, 512, [0], epoch)) for epoch in range(3)]
    assert max(shares) <= most
    assert padding_share(frames, plan_batches(frames, budget, 512)) < 0.01
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(frames)), len(frames) // 20)
    assert padding_share(frames, shuffled) > 0.4  # what batches of any length would cost


def test_speeds_that_the_planner_knows_cost_no_padding():
    frames = utterances(10_000)
    played = frames / np.random.default_rng(1).choice([0.9, 1.0, 1.1], len(frames))
    plans = [plan_batches(lengths, 160 * 16_000, 512, [0]) for lengths in (frames, played)]
    unknown, known = (padding_share(played, plan) for plan in plans)
    assert unknown > 0.1 and known < 0.04


def as_before(frames: np.ndarray, budget: int, world: int) -> list[np.ndarray]:
    """Batches of one process, dealt out in their random order, the first ones again to fill the last step."""
    batches = plan_batches(frames, budget, 512, [0], 0)
    return batches + batches[: -len(batches) % world]


@pytest.mark.parametrize("world", range(1, 9))
def test_no_process_waits_long_for_another(world):
    """Largest over mean of a step, in padded frames and in work: attention's grows with the square of a length.

    The time of an epoch, the largest of each step, is below that of batches in random order, were work all it takes.
    """
    frames = utterances(10_000)
    batches, before = plan_batches(frames, 160 * 16_000, 512, [0], 0, world), as_before(frames, 160 * 16_000, world)
    assert len(batches) % world == 0 and sorted(np.concatenate(batches)) == list(range(10_000))
    waiting, took = {}, {}
    for name, plan in (("ours", batches), ("before", before)):
        seconds = np.array([frames[batch].max() for batch in plan]).reshape(-1, world) / 16_000
        padded = seconds * np.array([len(batch) for batch in plan]).reshape(-1, world)
        work = padded * (1 + seconds / 120)
        waiting[name], took[name] = [cost.max(axis=1) / cost.mean(axis=1) for cost in (padded, work)], work.max(axis=1)
        print(f"world {world} {name}: {len(work)} steps; max / mean in frames {waiting[name][0].mean():.3f}, at worst "
              f"{waiting[name][0].max():.3f}, in work {waiting[name][1].mean():.3f}; "
              f"padding {padding_share(frames, plan):.3f}")  # fmt: skip
    assert max(ratio.mean() for ratio in waiting["ours"]) <= 1.01 and padding_share(frames, batches) < 0.03
    assert took["ours"].sum() < 0.99 * took["before"].sum() or world == 1


def test_one_process_has_the_plan_it_always_had():
    """Greedy: a batch takes the next row until it would be above the budget."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        frames, budget, most = rng.integers(1, 100, rng.integers(1, 60)), rng.integers(50, 600), rng.integers(1, 9)
        order, wanted = np.argsort(-frames, kind="stable"), [[]]
        for row in order.tolist():
            if wanted[-1] and (frames[wanted[-1][0]] * (len(wanted[-1]) + 1) > budget or len(wanted[-1]) == most):
                wanted.append([])
            wanted[-1].append(row)
        assert [batch.tolist() for batch in plan_batches(frames, budget, most)] == wanted


def test_budget_from_frames_or_seconds():
    assert frame_budget(SimpleNamespace(batch_frames=7, batch_seconds=None), None) == 7
    assert frame_budget(SimpleNamespace(batch_frames=None, batch_seconds=2.5), 16_000) == 40_000
    with pytest.raises(InputError, match=r"needs a rate in the manifest; give data\.batch_frames"):
        frame_budget(SimpleNamespace(batch_frames=None, batch_seconds=2.5), None)
    with pytest.raises(InputError, match="no rows to make batches of"):
        plan_batches(np.array([], int), 10, 10)
