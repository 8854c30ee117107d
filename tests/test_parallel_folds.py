"""``folds.parallel``: the same results as one after another; a failed fold loses no other, a killed run goes on."""

import json
import os
import signal
import time

import pytest
import torch
from small_runs import small, train, write_rows
from test_resume import outcome

from seqformer.errors import InputError
from seqformer.train.crossval import train_run
from seqformer.train.parallel import begin_log, gather_logs

torch.set_num_threads(1)


def parallel(plain: dict, folds: int = 3) -> dict:
    return plain | {"folds": plain["folds"] | {"parallel": folds}, "train": dict(plain["train"])}


def unlogged(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "log"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    """The run, one fold after another."""
    return outcome(train(tmp_path_factory.mktemp("whole"), small(manifest)))


def test_logs_of_folds_come_together_in_their_order(tmp_path):
    """Also after a kill between writing and deleting, and where a fold goes on that began in the run's own log."""
    run, folds = tmp_path / "log.jsonl", {name: tmp_path / f"fold{name}" for name in "012"}
    run.write_text('{"fold": "0", "step": 1}\n{"fold": "1", "step": 1}\n')
    for name in "21":
        path = begin_log(run, name, folds[name])
        with open(path, "a") as file:
            file.write(json.dumps({"fold": name, "step": 2}) + "\n")
    texts = {name: (folds[name] / "log.jsonl").read_text() for name in "12"}
    gather_logs(run, folds)
    first = run.read_text()
    steps = [(line["fold"], line["step"]) for line in map(json.loads, first.splitlines())]
    assert steps == [("0", 1), ("1", 1), ("1", 2), ("2", 2)] and not list(tmp_path.glob("*/*"))
    for name, text in texts.items():
        (folds[name] / "log.jsonl").write_text(text)
    gather_logs(run, folds)
    assert run.read_text() == first and not list(tmp_path.glob("*/*"))


@pytest.mark.slow  # each process imports everything
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


@pytest.mark.slow
def test_a_killed_run_of_parallel_folds_goes_on(manifest, whole, server, tmp_path):
    """Its processes end with it; what is left is trained, one after another or not."""
    plain = parallel(small(manifest), 2)
    (child,) = server.start(plain, tmp_path)
    while not list(tmp_path.glob("small/fold*/last/state.json")):
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    assert server.wait() == [-signal.SIGKILL]
    time.sleep(1)
    train_run(small(manifest), tmp_path, quiet=True)
    assert unlogged(outcome(tmp_path / "small")) == unlogged(whole)


@pytest.mark.parametrize(("key", "value"), [("parallel", 0), ("devices", 2)])
def test_what_parallel_folds_are_not_for(manifest, tmp_path, key, value):
    plain = parallel(small(manifest), 2)
    plain["folds" if key == "parallel" else "train"][key] = value
    with pytest.raises(InputError, match=r"folds\.parallel is"):
        train_run(plain, tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
