"""A process that has imported the trainer and forks a child per training: killable runs without seconds of import.

It reads one JSON list of jobs a line, forks a child for each, prints their process ids, waits, and prints how they
ended (exit code, or minus the signal). It never starts a thread of its own: children of a threaded process may hang.
"""

import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}

# What a run imports on first use, so that its children need not.
import albumentations  # noqa: F401
import omegaconf  # noqa: F401
import polars  # noqa: F401  its threads start with the first table, in a child
import rapidfuzz.distance  # noqa: F401
import scipy.signal  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch

from seqformer.train.crossval import train_run

CALLS = [(os, name) for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")] + [(shutil, "rmtree")]


def die_at(number: int, count_file: Path) -> None:
    """``kill -9`` this process right before the number-th call that changes files; note how many were made."""
    calls = 0

    def dying(call):
        def counted(*arguments, **keywords):
            nonlocal calls
            calls += 1
            count_file.write_text(str(calls))
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return counted

    for module, name in CALLS:
        setattr(module, name, dying(getattr(module, name)))


def train(job: dict) -> None:
    """``plain``: a config, or "module:function" to call; ``root``: folder of runs; ``env``; ``output``: a file."""
    with open(job["output"], "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ |= job["env"]
    torch.set_num_threads(1)
    if job["die_at"] is not None:
        die_at(job["die_at"], Path(job["root"], "calls"))
    if isinstance(job["plain"], str):
        module, name = job["plain"].split(":")
        getattr(importlib.import_module(module), name)(Path(job["root"]))
    else:
        train_run(job["plain"], Path(job["root"]))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if not child:
                code = 1
                try:
                    train(job)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        print(json.dumps(children), file=answers)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), file=answers)


if __name__ == "__main__":
    main()
