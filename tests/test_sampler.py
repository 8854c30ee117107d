"""Batches: every row once an epoch, within the budget, the same after any restart, with little padding."""

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
    "world": st.integers(1, 5),
}


def utterances(rows: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of LibriSpeech: 1 to 35 s, most at 12 s, in samples."""
    seconds = np.random.default_rng(seed).lognormal(np.log(12), 0.45, rows).clip(1, 35)
    return (seconds * 16_000).astype(np.int64)


@quick
@given(**PLANS)
def test_any_plan(frames, budget, max_items, seed, epoch, world):
    lengths = np.array(frames)
    batches = plan_batches(lengths, budget, max_items, seed, epoch, world)
    assert len(batches) % world == 0
    own = plan_batches(lengths, budget, max_items, seed, epoch)
    for first, second in zip(batches, own, strict=False):
        np.testing.assert_array_equal(first, second)
    assert sorted(np.concatenate(own)) == list(range(len(frames)))  # each row exactly once
    known = {tuple(batch) for batch in own}
    assert all(tuple(batch) in known for batch in batches[len(own) :]) and len(batches) - len(own) < world
    for batch in own:
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    if seed is None:
        longest = [lengths[batch].max() for batch in own]
        assert longest == sorted(longest, reverse=True) and longest[0] == lengths.max()


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


def test_processes_in_step_get_batches_of_all_rows():
    frames = utterances(333)
    batches = plan_batches(frames, 10**6, 64, [0], 0, world=4)
    shares = [batches[rank::4] for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert {row for share in shares for batch in share for row in batch} == set(range(333))


def test_budget_from_frames_or_seconds():
    assert frame_budget(SimpleNamespace(batch_frames=7, batch_seconds=None), None) == 7
    assert frame_budget(SimpleNamespace(batch_frames=None, batch_seconds=2.5), 16_000) == 40_000
    with pytest.raises(InputError, match=r"needs a rate in the manifest; give data\.batch_frames"):
        frame_budget(SimpleNamespace(batch_frames=None, batch_seconds=2.5), None)
    with pytest.raises(InputError, match="no rows to make batches of"):
        plan_batches(np.array([], int), 10, 10)
