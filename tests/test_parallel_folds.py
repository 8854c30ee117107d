"""``folds.parallel``: the same results as one after another; a failed fold loses no other, a killed run goes on."""

import json

import pytest
import torch
from small_runs import small, train, write_rows
from test_resume import outcome

from seqformer.errors import InputError
from seqformer.train.crossval import train_run

torch.set_num_threads(1)


def parallel(plain: dict, folds: int = 3) -> dict:
    return plain | {"folds": plain["folds"] | {"parallel": folds}}


def unlogged(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "log"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    """The run, one fold after another."""
    return outcome(train(tmp_path_factory.mktemp("whole"), small(manifest)))


def test_parallel_folds_are_those_one_after_another_and_a_failed_one_loses_no_other(manifest, whole, tmp_path):
    run = tmp_path / "small"
    (run / "fold1").mkdir(parents=True)
    (run / "fold1" / "targets.json").mkdir()  # where fold 1 wants to write a file
    with pytest.raises(InputError, match=r"^1 of 3 folds failed: fold 1: .*targets\.json.*; the others are kept$"):
        train_run(parallel(small(manifest)), tmp_path, quiet=True)
    assert [(run / f"fold{fold}" / "done.json").is_file() for fold in range(3)] == [True, False, True]
    (run / "fold1" / "targets.json").rmdir()
    kept = {path: path.stat().st_mtime_ns for path in run.glob("fold*/done.json")}
    train_run(parallel(small(manifest)), tmp_path, quiet=True)  # the one that is left
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()) and len(kept) == 2
    found = outcome(run)
    lines = [sorted(map(json.dumps, one["log"])) for one in (found, whole)]
    assert unlogged(found) == unlogged(whole) and lines[0] == lines[1]
    assert not list(run.glob("fold*/log.jsonl"))
