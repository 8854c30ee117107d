"""The largest budget that fits is found by few trials, each of the worst batches that its plan can have."""

import math
import os
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seqformer.cli import app
from seqformer.config import build_config, write_config
from seqformer.data.sampler import plan_batches
from seqformer.errors import InputError
from seqformer.train import budget
from seqformer.train.budget import GIB, Trial, find_budget, try_budget, worst_batches

torch.set_num_threads(1)
COMMAND = sys.modules["seqformer.cli.plan"]  # the name in its package is the command


@pytest.mark.parametrize("start", [1, 30, 500, 10_000])
@pytest.mark.parametrize("most", [40, 333.0, 2_000])
def test_the_search_ends_close_below_what_fits(start, most):
    trials = list(find_budget(lambda size: Trial(size, round(1e6 / size), 0.0, 1.0, 1, size <= most), start))
    best = max(trial.budget for trial in trials if trial.fits)
    assert most / 1.12 < best <= most and len(trials) <= abs(math.log2(most / start)) + 5
    assert len({trial.budget for trial in trials}) == len(trials)


def test_the_search_ends_where_more_or_less_changes_nothing():
    def attempt(size, fits):
        return Trial(size, max(1, min(100, round(400 / size))), 0.0, 1.0, 1, fits)

    assert [trial.budget for trial in find_budget(lambda size: attempt(size, True), 100)] == [100, 200, 400, 800]
    assert [trial.budget for trial in find_budget(lambda size: attempt(size, False), 8)] == [8, 4, 2]
    found = list(find_budget(lambda size: Trial(size, 100 - size, 0.0, 1.0, 1, size <= 2), 1, whole=True))
    assert [trial.budget for trial in found] == [1, 2, 4, 3]


class Rows:
    """A dataset of lengths and units alone."""

    rate = None

    def __init__(self, frames: np.ndarray, units: np.ndarray | None):
        self.lengths, self.units = frames, units

    def frames(self, epoch: int) -> np.ndarray:
        return self.lengths


@pytest.mark.parametrize("with_units", [False, True])
def test_no_epoch_has_a_worse_batch(tiny, with_units):
    """Of 20 epochs: in frames, in their square and in units of all frames; up to what one row more would make."""
    rng = np.random.default_rng(0)
    frames = rng.lognormal(6, 0.5, 3000).clip(50, 3000).astype(int)
    units = rng.integers(1, 60, 3000) if with_units else None
    data = build_config(tiny(data__batch_frames=20_000, data__max_items=64)).data
    worst = worst_batches(Rows(frames, units), data)
    sizes = [lambda items, long, many: items * long, lambda items, long, many: items * long**2]
    sizes += [lambda items, long, many: items * many] if with_units else []

    def shape(batch: np.ndarray) -> tuple:
        return len(batch), int(frames[batch].max()), int(units[batch].max()) if with_units else 0

    for size in sizes:
        most = max(size(*shape(batch)) for batch in worst)
        for epoch in range(20):
            found = max(size(*shape(batch)) for batch in plan_batches(frames, 20_000, 64, [0], epoch))
            assert found <= 1.02 * most


def test_a_trial_trains_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "cap_memory", lambda device, limit: None)  # of the tests' own process
    config = build_config(tiny())
    trial = try_budget(config, tmp_path, 100 * GIB)
    assert trial.fits and trial.budget == 8_000 and trial.batches > 1
    assert 0 < trial.padding < 0.5 and trial.frames_per_s > 0 and 0.1 * GIB < trial.peak < 100 * GIB
    assert not try_budget(config, tmp_path, GIB // 100).fits
    with pytest.raises(InputError, match="cpu memory is shared with everything else: say how much with --memory-gib"):
        try_budget(config, tmp_path, None)
    for error in (torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("[enforce fail] can't allocate memory")):

        def fail(trainer, rows, error=error):
            raise error

        monkeypatch.setattr(budget, "train_on", fail)
        trial = try_budget(config, tmp_path, 100 * GIB)
        assert trial.peak is None and not trial.fits and math.isnan(trial.frames_per_s)
    assert not os.listdir(tmp_path)


def command(*arguments) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return f"{done.output}{done.exception if done.exit_code else ''}"


def test_the_command(tiny, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(write_config(tiny()))
    assert command(path, "--memory-gib", -1) == "--memory-gib -1: expected GiB above 0"
    assert "config: data: unknown key 'batch_frame'; did you mean" in command(path, "data.batch_frame=3")
    for peak, wanted in ((2**30, "largest that fits: data.batch_frames=673"), (None, "not even that of 50 frames")):

        def attempt(plain, key, root, limit, size, peak=peak):
            return Trial(size, 10 if peak is None else 9999 // int(size), 0.02, 5e4, peak, bool(peak) and size < 700)

        monkeypatch.setattr(COMMAND, "in_child", attempt)
        found = command(path, "data.batch_frames=100")
        assert wanted in found
        assert ("1.00 GiB  fits  50,000 frames/s" if peak else "no memory  too much") in found


@pytest.mark.slow
def test_a_child_that_runs_out_of_memory(tiny, tmp_path):
    trials = [COMMAND.in_child(tiny(), "batch_frames", tmp_path, limit, 8_000) for limit in (8 * GIB, GIB // 4)]
    assert [trial.fits for trial in trials] == [True, False] and trials[0].batches > 1
