"""A tiny corpus, a run over it, and a server that trains it in processes that may be killed."""

import copy
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqformer
from seqformer import cli

torch.set_num_threads(1)
RATE = 8_000  # Hz
# Everything random a run can have: dropout, dither, SpecAugment, augmentation, bucketed batches, averaged weights.
TINY = {
    "run": "tiny",
    "seed": 7,
    "data": {"manifest": "", "batch_frames": 8_000, "workers": 0},
    "folds": {"kind": "column", "by": "half", "use": 0},
    "text": {"kind": "chars"},
    "frontend": {
        "name": "logmel",
        "rate": RATE,
        "mels": 8,
        "dither": 1e-3,
        "spec_augment": {"freq_masks": 1, "freq_width": 3, "time_masks": 1, "time_share": 0.2},
    },
    "backbone": {
        "name": "squeezeformer",
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "kernel": 5,
        "reduce_at": 0,
        "recover_at": 1,
        "stem": "linear",
        "dropout": 0.1,
    },
    "head": {"name": "ctc"},
    "augment": [{"name": "speed"}, {"name": "noise", "p": 0.5}],
    "optim": {"lr": 3e-3, "schedule": "cosine", "warmup": 0.2},
    "train": {"epochs": 3, "accumulate": 2, "ema": 0.9, "save_every": 2, "device": "cpu", "threads": 1},
    "metric": {"name": "cer"},
}


def write_corpus(folder: Path, rows: int = 40, rate: int = RATE) -> Path:
    """Noisy tones, one per character of a short text, in an int16 store; returns the manifest."""
    rng = np.random.default_rng(0)
    table = []
    with seqformer.StoreWriter(folder / "audio", "int16") as store:
        for row in range(rows):
            text = "".join(rng.choice(list("abc"), rng.integers(2, 6)))
            tones = [np.sin(np.arange(rng.integers(300, 600)) * (0.3 + 0.5 * "abc".index(c))) for c in text]
            samples = np.concatenate(tones) + 0.05 * rng.standard_normal(sum(map(len, tones)))
            place = {"id": f"row{row:02d}", "path": "audio", "row": store.add((9000 * samples).astype(np.int16))}
            table.append(place | {"frames": len(samples), "rate": rate, "text": text, "half": row % 2})
    seqformer.write_manifest(table, folder / "manifest.parquet")
    return folder / "manifest.parquet"


DENSE = {"frontend": {"name": "dense", "channels": 4}, "data__batch_frames": 200}


def poisoned(folder: Path, bad: list[int]) -> Path:
    """40 rows of features with a text each; some rows hold an infinite value."""
    rng, table = np.random.default_rng(0), []
    with seqformer.StoreWriter(folder / "store", "float32") as store:
        for row in range(40):
            x = rng.standard_normal((rng.integers(20, 60), 4)).astype(np.float32)
            x[3, 1] = np.inf if row in bad else 0
            place = {"id": f"row{row:02d}", "path": "store", "row": store.add(x), "frames": len(x)}
            table.append(place | {"text": "abc"[row % 3], "half": row % 2})
    seqformer.write_manifest(table, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def change(plain: dict, **changes: Any) -> dict:
    """A copy of a config with ``section__key=value`` changes."""
    plain = copy.deepcopy(plain)
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = plain
        for section in sections:
            place = place[section]
        place[key] = value
    return plain


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def tiny(corpus):
    """``tiny(section__key=value)`` -> the config of a tiny run."""
    return lambda **changes: change(TINY, **{"data__manifest": str(corpus)} | changes)


class Server:
    """Trains in child processes of a process that has imported everything; see training_server.py."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_server.py"))],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.children: list[int] = []

    def start(self, plain: dict | str, root: Path, environments=({},), die_at: int | None = None) -> list[int]:
        """Begin a training, or a function "module:name", one process for each environment; returns their ids."""
        root.mkdir(parents=True, exist_ok=True)
        job = {"plain": plain, "root": str(root), "die_at": die_at}
        jobs = [job | {"env": env, "output": str(root / f"output{rank}")} for rank, env in enumerate(environments)]
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.children = json.loads(self._line(60))
        return self.children

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes of the processes begun last, or minus the signal that ended them."""
        try:
            return json.loads(self._line(seconds))
        except TimeoutError:
            for child in self.children:
                os.kill(child, signal.SIGKILL)
            self._line(60)
            raise

    def train(self, plain: dict | str, root: Path, environments=({},)) -> float:
        """Train to the end; returns the seconds it took."""
        begun = time.perf_counter()
        self.start(plain, root, environments)
        codes = self.wait()
        assert not any(codes), "\n".join(path.read_text() for path in sorted(root.glob("output*")))
        return time.perf_counter() - begun

    def kill(self, plain: dict, root: Path, lines: int = 0, seconds: float = 0.0, call: int | None = None) -> bool:
        """Train, and kill -9 so many seconds after a number of log lines, or before a call that changes files.

        False when it had ended before.
        """
        (child,) = self.start(plain, root, die_at=call)
        log = root / plain["run"] / "log.jsonl"
        while call is None and not self._answers(0.002):
            if (log.read_bytes().count(b"\n") if log.exists() else 0) >= lines:
                time.sleep(seconds)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                break
        return self.wait() == [-signal.SIGKILL]

    def _answers(self, seconds: float) -> bool:
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def _line(self, seconds: float) -> str:
        if not self._answers(seconds):
            raise TimeoutError(f"no answer in {seconds} s")
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()  # its input may be open in a loader's worker of this process, so that closing is not enough
        self.process.wait(30)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def program(monkeypatch, capsys):
    """``program("train", ...)`` -> (exit code, standard output, standard error) of the program, in this process."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seqformer", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capsys.readouterr()
        return end.value.code or 0, found.out, found.err

    return run


@pytest.fixture(scope="session")
def server():
    found = Server()
    assert found._line(120) == "ready\n"
    yield found
    found.close()
