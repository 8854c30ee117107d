"""P2: a killed run resumes bit for bit, for any number of loader workers; finished folds are kept."""

import json
import random
import shutil
from pathlib import Path

import polars
import pytest
from conftest import DENSE, TINY, change, poisoned

from seqformer.checkpoint import FILES, find_checkpoint, load_weights

FOLD = [f"{kind}/{name}" for kind in ("last", "best") for name in (*FILES, "state.json")] + [
    "oof.parquet",
    "targets.json",
]


# Beside everything random that a tiny run has, speeds that the model's device plays.
PLAYED = {"name": "rows", "speed": [0.9, 1.0, 1.1], "speed_on": "device"}


@pytest.fixture
def tiny(tiny):
    return lambda **changes: tiny(**{"dataset": PLAYED} | changes)


def outcome(run: Path) -> dict:
    """What a run came to: the bytes of its files, and its log without the times."""
    found = {
        str(path.relative_to(run)): path.read_bytes() for name in FOLD for path in sorted(run.glob(f"fold*/{name}"))
    }
    timed = ("frames_per_s", "wait", "mfu", "seconds")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in record.items() if key not in timed} for record in records]
    done = [json.loads(path.read_text()) for path in sorted(run.glob("fold*/done.json"))]
    found["done"] = [{key: value for key, value in facts.items() if key != "seconds"} for facts in done]
    found["oof"] = (run / "oof.parquet").read_bytes()
    return found


def differing(run: Path, wanted: dict) -> list[str]:
    """Names of what came out otherwise than wanted, and of files left lying about."""
    found = outcome(run)
    stale = [str(path.relative_to(run)) for path in run.rglob("*") if path.suffix in (".partial", ".new", ".old")]
    return [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)] + stale


def check_newest(run: Path, copy: Path) -> int | None:
    """The step of the checkpoint that a resuming run would take up, loaded in full; None before the first."""
    if not (run / "fold0").is_dir():
        return None
    shutil.copytree(run / "fold0", copy)
    state = find_checkpoint(copy / "last")
    if state is None:
        return None
    assert all(load_weights(copy / "last", name) for name in FILES)
    return state["step"]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory, corpus):
    """The uninterrupted run: what it came to, and the number of its calls that change files."""
    root, plain = tmp_path_factory.mktemp("whole"), change(TINY, data__manifest=str(corpus), dataset=PLAYED)
    calls = count_calls(server, plain, root)
    return outcome(root / "tiny"), calls


def count_calls(server, plain: dict, root: Path) -> int:
    """Train to the end; returns how many calls changed files."""
    server.start(plain, root, die_at=-1)
    assert server.wait() == [0]
    return int((root / "calls").read_text())


def resumed(server, plain: dict, root: Path, whole, **kill) -> tuple[bool, int | None, list[str]]:
    """Kill a run, check its newest checkpoint, resume it: (was it killed, the step it resumed at, differences)."""
    killed = server.kill(plain, root, **kill)
    step = check_newest(root / "tiny", root / "copy")
    server.train(plain, root)
    return killed, step, differing(root / "tiny", whole[0])


def test_the_run_is_worth_killing(whole):
    found = whole[0]
    steps = [record for record in found["log"] if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 10)) and len(found["done"]) == 1
    assert json.loads(found["fold0/last/state.json"])["averages"] == 9
    assert len(found) == len(FOLD)  # no best/, but log, done and oof


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(server, tiny, tmp_path, whole, workers):
    server.train(tiny(data__workers=workers), tmp_path)
    assert not differing(tmp_path / "tiny", whole[0])


def test_one_seed_twice_is_one_result_and_another_seed_another(server, tiny, tmp_path, whole):
    server.train(tiny(), tmp_path / "same")
    assert not differing(tmp_path / "same" / "tiny", whole[0])
    server.train(tiny(seed=8), tmp_path / "other")
    assert "fold0/last/model.safetensors" in differing(tmp_path / "other" / "tiny", whole[0])


def random_moment(draw: random.Random) -> dict:
    """After a number of lines of the log, of which a whole run has 12, and up to a step more."""
    return {"lines": draw.randint(0, 12), "seconds": draw.uniform(0, 0.1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume(server, tiny, tmp_path, whole, workers):
    draw = random.Random(workers)
    for trial in range(2):
        moment = random_moment(draw)
        *_, wrong = resumed(server, tiny(data__workers=workers), tmp_path / str(trial), whole, **moment)
        assert not wrong, f"killed at {moment}"


def test_kill_at_calls_that_change_files(server, tiny, tmp_path, whole):
    for call in random.Random(0).sample(range(1, whole[1] + 1), 3):
        killed, _, wrong = resumed(server, tiny(), tmp_path / str(call), whole, call=call)
        assert killed and not wrong, f"killed before call {call} of {whole[1]}"


def test_killed_again_and_again(server, tiny, tmp_path, whole):
    draw = random.Random(1)
    for lines in (3, 6, 10):
        server.kill(tiny(), tmp_path, lines, seconds=draw.uniform(0, 0.05))
    server.train(tiny(), tmp_path)
    assert not differing(tmp_path / "tiny", whole[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 2])
def test_20_of_20_random_kills(server, tiny, tmp_path, whole, workers):
    draw, identical, steps = random.Random(100 + workers), 0, []
    for trial in range(20):
        killed = False
        while not killed:  # the last moments may come too late
            root, moment = tmp_path / f"{trial}-{draw.random()}", random_moment(draw)
            killed, step, wrong = resumed(server, tiny(data__workers=workers), root, whole, **moment)
        identical += not wrong
        steps.append(step)
    print(f"\nworkers {workers}: {identical} of 20 resumed bit for bit; resumed at steps {steps}")
    assert identical == 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("select", ["last", "best"])
def test_every_call_that_changes_files(server, tiny, tmp_path, select):
    plain, bad = tiny(train__select=select), []
    calls = count_calls(server, plain, tmp_path / "whole")
    wanted = outcome(tmp_path / "whole" / "tiny"), calls
    for call in range(1, calls + 1):
        killed, _, wrong = resumed(server, plain, tmp_path / str(call), wanted, call=call)
        if not killed or wrong:
            bad.append((call, wrong))
        shutil.rmtree(tmp_path / str(call))
    print(f"\n{select}: {calls - len(bad)} of {calls} kills before a call that changes files resumed bit for bit")
    assert not bad


def test_the_best_checkpoint_and_patience(server, tiny, tmp_path):
    """The epoch that was best so far, and how long ago, outlive a kill."""
    plain = tiny(train__select="best", train__patience=2, train__epochs=12, optim__lr=0.05)
    calls = count_calls(server, plain, tmp_path / "whole")
    wanted = outcome(tmp_path / "whole" / "tiny"), calls
    assert {f"fold0/best/{name}" for name in FILES} <= wanted[0].keys()
    assert wanted[0]["done"][0]["epochs"] == wanted[0]["done"][0]["best_epoch"] + 2 < 12
    assert resumed(server, plain, tmp_path / "cut", wanted, call=calls // 2)[::2] == (True, [])


def two_folds(tiny, **changes) -> dict:
    return tiny(folds__use="all", train__epochs=1, **changes)


def test_finished_folds_are_kept_and_the_rest_is_the_same(server, tiny, tmp_path):
    """Killed between folds, in the last fold, while oof.parquet of a fold is written: the same out-of-fold table."""
    calls, run = count_calls(server, two_folds(tiny), tmp_path / "whole"), tmp_path / "whole" / "tiny"
    wanted = outcome(run)
    table = polars.read_parquet(run / "oof.parquet")
    assert table.height == table["id"].n_unique() == 40 and len(wanted["done"]) == 2
    for part in (0.4, 0.9):
        root = tmp_path / str(part)
        assert server.kill(two_folds(tiny), root, call=round(part * calls))
        kept = {path: path.stat().st_mtime_ns for path in root.glob("tiny/fold*/done.json")}
        server.train(two_folds(tiny), root)
        assert not differing(root / "tiny", wanted)
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert kept  # the last kill came after the first fold was done


def test_half_written_table_of_predictions(server, tiny, tmp_path, whole):
    """done.json is the mark: without it the fold is validated again, and what lies about is replaced."""
    server.train(tiny(), tmp_path)
    fold = tmp_path / "tiny" / "fold0"
    (fold / "done.json").unlink()
    (fold / "oof.parquet").rename(fold / ".oof.parquet.partial")
    (fold / ".oof.parquet.partial").write_bytes(b"PAR1")
    server.train(tiny(), tmp_path)
    assert not differing(tmp_path / "tiny", whole[0])


def everything(tiny, root: Path) -> tuple[dict, dict]:
    """A run, and one that starts from it and is taught by it, with each thing that changes with the epoch."""
    store = poisoned(root / "rows", [])
    table = polars.read_parquet(store)
    table.with_columns(weight=polars.Series(range(40)) % 3 + 1.0, word=polars.col("text") + "w").write_parquet(store)
    first = tiny(run="first", data__manifest=str(store), augment=[{"name": "gain"}], dataset={"name": "rows"}, **DENSE)
    first["train"] |= {"epochs": 1}
    then = change(first, run="tiny", init_from=str(root / "first"))
    then |= {"teacher": {"run": str(root / "first"), "weight": 0.5}}
    then["train"] |= {"epochs": 4, "save_every": 3, "ema": 0.0, "swa": 0.4, "weight_power": [[0, 1.0], [2, 0.5]]}
    then["train"] |= {"awp": {"size": 0.02, "from_epoch": 1}}
    until = {"where": {"word": "aw"}, "epoch": 3}
    then["sampling"] = {"weight": "weight", "power": [[0, 1.0], [3, 0.0]], "items": 24, "once_per": "word"}
    then["sampling"] |= {"once_where": {"text": "c"}, "until": until}
    return first, then


def test_with_sampling_averages_adversary_and_teacher(server, tiny, tmp_path):
    """Killed in each phase of the run: with weights averaged and not yet, before and after the adversary begins."""
    first, plain = everything(tiny, tmp_path)
    server.train(first, tmp_path)
    calls = count_calls(server, plain, tmp_path / "whole")
    wanted = outcome(tmp_path / "whole" / "tiny")
    assert json.loads(wanted["fold0/last/state.json"])["averages"] == 3
    steps = []
    for workers, part in ((0, 0.35), (2, 0.7)):  # of the loader when the run goes on
        root = tmp_path / str(part)
        assert server.kill(plain, root, call=round(part * calls))
        steps.append(check_newest(root / "tiny", root / "copy"))
        server.train(change(plain, data__workers=workers), root)
        assert not differing(root / "tiny", wanted)
    assert 0 < steps[0] < steps[1]
