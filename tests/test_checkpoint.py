"""P2, P5: whatever goes wrong while a checkpoint is written or kept, an intact one is loaded or none; no code runs."""

import errno
import io
import json
import os
import pickle
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seqformer import InputError, checkpoint
from seqformer.checkpoint import FILES, find_checkpoint, load_weights, save_checkpoint, verify, write_file
from seqformer.config import Optim
from seqformer.predict import TrainedRun
from seqformer.timm_import import import_timm
from seqformer.train.crossval import train_run
from seqformer.train.optim import UNFIT, make_optimizer

NAMES = (*FILES, "state.json")


def save(folder: Path, step: int) -> None:
    model = {"weight": torch.full((7, 5), float(step)), "count": torch.tensor(step)}
    save_checkpoint(folder, model, {"optim.0.exp_avg": torch.full((7, 5), -float(step))}, {"step": step, "lr": 0.1})


def loaded(folder: Path) -> int:
    """The step of the newest checkpoint, all of it of that step, with nothing left beside it."""
    step = find_checkpoint(folder)["step"]
    assert load_weights(folder)["weight"].eq(step).all() and load_weights(folder)["count"] == step
    assert load_weights(folder, FILES[1])["optim.0.exp_avg"].eq(-step).all()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    return step


class Kill(BaseException):
    """Nothing may catch it, as nothing catches kill -9."""


class Disk:
    """Counts the calls that change what is on disk, and fails at one of them, a write or a removal half done."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int = -1, failure: BaseException | None = None):
        self.calls, self.fail_at, self.failure, self.room = 0, fail_at, failure, float("inf")
        for name in ("fsync", "replace", "rename", "mkdir"):
            patch.setattr(os, name, self.counted(getattr(os, name)))
        if not isinstance(failure, OSError):  # removing needs no room
            patch.setattr(os, "unlink", self.counted(os.unlink))
            patch.setattr(os, "rmdir", self.counted(os.rmdir))
        patch.setattr(checkpoint, "open", self.opened, raising=False)

    def counted(self, call):
        def wrapped(*arguments, **keywords):
            self.count()
            return call(*arguments, **keywords)

        return wrapped

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.failure

    def opened(self, path, mode):
        disk = self

        class Torn(io.FileIO):
            def write(self, content: bytes) -> int:
                if disk.calls + 1 == disk.fail_at or len(content) > disk.room:
                    super().write(content[: int(min(len(content) // 2, disk.room))])
                    raise disk.failure
                disk.count()
                disk.room -= len(content)
                return super().write(content)

        return Torn(path, mode) if "w" in mode else open(path, mode)


def count_calls(action, failure: BaseException | None = None) -> int:
    """How many calls an action makes that change what is on disk."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, failure=failure)
        action()
    return disk.calls


def failing(action, fail_at: int, failure: BaseException, room: float = float("inf")) -> BaseException | None:
    """Do it on a disk that fails at a call, or after ``room`` bytes; returns what was raised."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, fail_at, failure).room = room
        try:
            action()
        except BaseException as error:
            return error
    return None


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder that holds the checkpoint of step 1, and nothing else."""
    save(tmp_path / "old" / "last", 1)
    return tmp_path / "old"


def test_killed_at_every_call_of_a_save_and_of_the_recovery_after_it(old, tmp_path):
    """Whatever two kills interrupt, the newest checkpoint is the old or the new one, whole; the next save works."""
    seen, trials = [], 0
    counted = copied(old, tmp_path / "count") / "last"
    for first in range(1, count_calls(lambda: save(counted, 2)) + 1):
        broken = copied(old, tmp_path / "broken") / "last"
        assert isinstance(failing(lambda: save(broken, 2), first, Kill()), Kill)  # noqa: B023
        recovery = copied(broken.parent, tmp_path / "work") / "last"
        for second in range(1, count_calls(lambda: find_checkpoint(recovery)) + 1):  # noqa: B023
            again = copied(broken.parent, tmp_path / "again") / "last"
            failing(lambda: find_checkpoint(again), second, Kill())  # noqa: B023
            loaded(again)
            trials += 1
        step = loaded(recovery)
        seen.append(step)
        again = copied(broken.parent, tmp_path / "again") / "last"
        save(again, 3)  # without looking first, as a run of another fold would
        assert loaded(again) == 3
    assert seen == sorted(seen) and set(seen) == {1, 2} and trials > len(seen)


def test_killed_at_every_call_of_the_first_save(tmp_path):
    for fail_at in range(1, count_calls(lambda: save(tmp_path / "count" / "last", 1)) + 1):
        folder = tmp_path / str(fail_at) / "last"
        assert isinstance(failing(lambda: save(folder, 1), fail_at, Kill()), Kill)  # noqa: B023
        state = find_checkpoint(folder)
        assert state is None or loaded(folder) == 1
        if state is None:
            assert not folder.parent.exists() or not list(folder.parent.iterdir())


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(old, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    counted, seen = copied(old, tmp_path / "count") / "last", []
    calls = count_calls(lambda: save(counted, 2), full)
    size = sum((counted / name).stat().st_size for name in NAMES)
    rooms = [(-1, room) for room in range(0, size, size // 50)]
    for fail_at, room in [(fail_at, float("inf")) for fail_at in range(1, calls + 1)] + rooms:
        folder = copied(old, tmp_path / "work") / "last"
        error = failing(lambda: save(folder, 2), fail_at, full, room)  # noqa: B023
        assert isinstance(error, InputError) and re.fullmatch(r"cannot write \S+: No space left on device", str(error))
        if fail_at < 0:
            assert sorted(path.name for path in folder.parent.iterdir()) == ["last"]
        seen.append(loaded(folder))
    print(f"\nold checkpoint intact in {seen.count(1)} of {len(seen)} failures to write, the new one in the others")
    assert len(rooms) >= 50 and seen[-len(rooms) :] == [1] * len(rooms)
    assert seen[: -len(rooms)] == sorted(seen[: -len(rooms)]) and set(seen) == {1, 2}


def test_write_file_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_file(path, "old")
    for fail_at in range(1, count_calls(lambda: write_file(tmp_path / "count", "new")) + 1):
        write_file(path, "old")
        failing(lambda: write_file(path, "new"), fail_at, Kill())
        assert path.read_text() in ("old", "new")
    with pytest.raises(InputError, match=r"cannot write .*none/metrics.json: No such file or directory"):
        write_file(tmp_path / "none" / "metrics.json", "new")


def damage(old: Path) -> list:
    """(what was done, a function that does it to a checkpoint's folder)."""
    draw, found = random.Random(0), []
    for name in NAMES:
        content = (old / "last" / name).read_bytes()
        cuts = {0, 1, 7, 8, 9, len(content) // 2, len(content) - 1}
        found += [(f"{name} cut to {n}", lambda f, n=n, m=name, c=content: (f / m).write_bytes(c[:n])) for n in cuts]
        for place in [*range(16), *draw.sample(range(16, len(content)), min(60, len(content) - 16))]:
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(8)
            found.append((f"{name} byte {place}", lambda f, m=name, b=bytes(flipped): (f / m).write_bytes(b)))
        found.append((f"{name} longer", lambda f, m=name, c=content: (f / m).write_bytes(c + b"\0")))
        found.append((f"{name} missing", lambda f, m=name: (f / m).unlink()))
        found.append((f"{name} of another", lambda f, m=name: shutil.copy(f.parent.parent / "other" / "last" / m, f)))
        found.append((f"{name} a folder", lambda f, m=name: ((f / m).unlink(), (f / m).mkdir())))
    header = (old / "last" / FILES[0]).read_bytes()
    renamed = header.replace(b'"weight"', b'"height"').replace(b"[7,5]", b"[5,7]")
    found.append(("header edited", lambda f: (f / FILES[0]).write_bytes(renamed)))
    found.append(("files swapped", lambda f: ((f / FILES[0]).rename(f / "x"), (f / FILES[1]).rename(f / FILES[0]))))
    for text in ("", "[]", "null", "{", '{"step": 1}', '{"format": 1, "files": {}, "step": 1}', "\xff", "[" * 100_000):
        found.append((f"state {text[:20]}", lambda f, t=text: (f / "state.json").write_text(t, encoding="latin-1")))
    for key, value in (("step", 9), ("lr", 0.2), ("files", {}), ("format", 2), ("seal", "0" * 64)):
        found.append((f"state {key}", lambda f, k=key, v=value: edit_state(f, {k: v})))
    return found


def edit_state(folder: Path, changes: dict) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | changes, indent=1))


def test_damage_is_never_loaded_silently(old, tmp_path):
    save(tmp_path / "other" / "last", 2)
    whole, refused = verify(old / "last"), 0
    cases = damage(old)
    for what, apply in cases:
        folder = copied(old, tmp_path / "work") / "last"
        apply(folder)
        if verify(folder) == whole:  # an `e` that became an `E`: the same number
            continue
        refused += 1
        assert verify(folder) is None, what
        with pytest.raises(InputError, match="is damaged"):
            find_checkpoint(folder)
        with pytest.raises(InputError, match="no intact checkpoint"):
            [load_weights(folder, name) for name in FILES]
        assert folder.exists()  # left for its owner to look at
    print(f"\n{refused} of {len(cases)} damaged checkpoints refused, none loaded with other content")
    assert refused >= len(cases) - 2


def test_damage_falls_back_on_the_copy_that_verifies(old, tmp_path):
    for suffix in (".old", ".new"):
        folder = copied(old, tmp_path / "work") / "last"
        copied(folder, folder.with_name("last" + suffix))
        (folder / FILES[0]).write_bytes(b"")
        assert loaded(folder) == 1


class Payload:
    """Unpickled, it runs code."""

    def __reduce__(self):
        return os.mkdir, ("EXECUTED",)


def test_no_pickle_is_ever_read(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        for sealed in (False, True):
            folder = copied(old, tmp_path / "work") / "last"
            (folder / name).write_bytes(pickle.dumps(Payload()))
            if sealed and name in FILES:  # by someone who can write hashes too
                state = json.loads((folder / "state.json").read_text())
                state["files"][name], _ = checkpoint._digest(folder / name), state.pop("seal")
                edit_state(folder, state | {"seal": checkpoint._seal(state)})
                assert verify(folder)
            with pytest.raises(InputError):
                [load_weights(folder, file) for file in FILES]
    assert not Path("EXECUTED").exists()


unpickled: list[str] = []
watching = False


def watch(event: str, arguments: tuple) -> None:
    if watching and event == "pickle.find_class":
        unpickled.append(".".join(arguments))


def test_no_pickle_in_training_resuming_and_predicting(tiny, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    global watching
    sys.addaudithook(watch)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    watching = True
    try:
        for _ in range(2):
            train_run(tiny(train__epochs=1, augment=[]), tmp_path, quiet=True)
            (tmp_path / "tiny" / "fold0" / "done.json").rename(tmp_path / "done.json")
        (tmp_path / "done.json").rename(tmp_path / "tiny" / "fold0" / "done.json")
        assert len(list(TrainedRun(tmp_path / "tiny").folds())) == 1
    finally:
        watching = False
    assert not unpickled
    kinds = {path.suffix for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    assert kinds == {".yaml", "", ".json", ".jsonl", ".parquet", ".safetensors"}


def optimizers() -> dict[str, str]:
    """One name for each optimiser class of timm that runs on a CPU, and ours."""
    optim, found = import_timm().optim, {"AdamW": "adamw"}
    for name in optim.list_optimizers():
        kind = optim.get_optimizer_info(name).opt_class
        if not isinstance(kind, str) and kind.__name__ not in UNFIT and not name.startswith(("bnb", "fused")):
            found.setdefault(kind.__name__, name)
    return found


def stepped(name: str, steps: int, between=lambda *_: None) -> tuple[list, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))
    optimizer = make_optimizer(model, Optim(name=name))
    x = torch.randn(steps, 5, 4)
    for step in range(steps):
        if step == steps // 2:
            between(model, optimizer)
        model(x[step]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()], optimizer


def test_every_optimizer_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    found = optimizers() | {"Lookahead": "lookahead_radam"}
    assert len(found) > 25 and {"Lion", "NAdamW", "Lamb", "Adan"} <= found.keys()
    for kind, name in found.items():

        def through_disk(model, optimizer, folder=tmp_path / name):
            tensors, plain = checkpoint.flatten_optimizer(optimizer)
            save_checkpoint(folder, model.state_dict(), tensors, {"step": 3, "optim": plain})
            fresh = make_optimizer(model, Optim(name=name))  # noqa: B023
            checkpoint.restore_optimizer(fresh, load_file(folder / FILES[1]), find_checkpoint(folder)["optim"])
            optimizer.__dict__.update(fresh.__dict__)

        steps = 14 if kind == "Lookahead" else 6  # its slow weights move at steps 6 and 12
        wanted, found_state = stepped(name, steps)[0], stepped(name, steps, through_disk)[0]
        assert all(map(torch.equal, wanted, found_state)), kind
