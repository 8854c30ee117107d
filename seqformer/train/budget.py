"""The largest budget of a batch that fits memory, found by trying the worst batches of its plan. Nothing is written."""

import math
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqformer.batch import Batch, collate
from seqformer.config import Run
from seqformer.data.folds import fold_names, split_rows
from seqformer.data.manifest import read_manifest
from seqformer.data.sampler import padding_share, plan_dataset
from seqformer.errors import InputError
from seqformer.train.crossval import check_parts, folds_of, make_fabric, resolve_precision
from seqformer.train.fold import prepare_fold
from seqformer.train.log import RunLog
from seqformer.train.loop import FoldJob, FoldTrainer, Work
from seqformer.train.stages import earlier_folds

GIB = 2**30
CLOSE = 1.1  # two budgets, one that fits and one that does not, are not told apart any further
DRAWS = 4  # epochs in which an augmented row is looked at, for the longest it becomes


@dataclass(frozen=True)
class Trial:
    """A budget that was tried; ``peak`` is in bytes, None where a batch found no memory at all."""

    budget: float
    batches: int  # an epoch
    padding: float
    frames_per_s: float
    peak: int | None
    fits: bool


def find_budget(attempt: Callable[[float], Trial], start: float, whole: bool = False) -> Iterator[Trial]:
    """Trials of budgets from ``start`` on: doubled until one does not fit, or halved until one does, then between both.

    It ends where the two are close, or where more (or less) budget changes nothing: fewer than one row, or all of them.
    ``whole``: budgets are whole numbers.
    """
    fits, fails, last = 0.0, math.inf, None
    budget = start
    while True:
        trial = attempt(budget)
        yield trial
        fits, fails = (budget, fails) if trial.fits else (fits, budget)
        one_sided = not fits or fails == math.inf
        if one_sided and last is not None and 0 < last.batches == trial.batches:
            return
        last = trial
        budget = 2 * fits if fails == math.inf else fails / 2 if not fits else math.sqrt(fits * fails)
        budget = float(f"{budget:.3g}") if not whole else max(1, round(budget))
        if budget in (fits, fails) or budget < start / 1000 or (not one_sided and fails / fits < CLOSE):
            return


def try_budget(config: Run, root: Path, limit: int | None) -> Trial:
    """Train steps on the worst batches of the first fold's plan, in a process that does nothing else.

    ``limit`` (bytes) counts what is allotted on a GPU (default: all but 5 % of it), or all memory of this process on a
    CPU. Raises InputError as a training run does before it begins, and on a CPU without a limit.
    """
    one = replace(config.train, devices=1, strategy="auto", precision=resolve_precision(config.train))
    config = replace(config, train=one)
    check_parts(config)
    fabric = make_fabric(config.train)
    limit = allowed_memory(fabric.device, limit)
    with tempfile.TemporaryDirectory() as folder, RunLog(None, quiet=True) as log:
        job = first_job(config, root, Path(folder), log)
        plan = plan_dataset(job.train, config.data, 0, [config.seed, job.key])
        trainer, frames_per_s, found_none = FoldTrainer(job, fabric), math.nan, False
        trainer.ceiling = math.inf  # no share of the device's speed is asked for
        cap_memory(fabric.device, limit)
        try:
            trainer.model.train()
            for rows in worst_batches(job.train, config.data):
                train_on(trainer, rows)
            usual = sorted(plan, key=lambda rows: int(job.train.frames(0)[rows].sum()))[len(plan) // 2]
            frames_per_s = train_on(trainer, usual)["frames_per_s"]
        except (MemoryError, torch.OutOfMemoryError):
            found_none = True
        except RuntimeError as error:  # a CPU has no error of its own for it, and oneDNN not even a text
            if "allocate memory" not in str(error) and peak_memory(fabric.device) <= limit:
                raise
            found_none = True
    peak = None if found_none else peak_memory(fabric.device)
    fits = peak is not None and peak <= limit
    budget = config.data.batch_frames or config.data.batch_seconds
    return Trial(budget, len(plan), padding_share(job.train.frames(0), plan), frames_per_s, peak, fits)


def first_job(config: Run, root: Path, folder: Path, log: RunLog) -> FoldJob:
    """The first fold that a run trains, made ready in an empty ``folder``; no rows to validate, no pseudo-labels."""
    table = read_manifest(config.data.manifest, config.data.where)
    folds = folds_of(config, table)
    name = fold_names(folds, config.folds.use)[0]
    train, valid = split_rows(folds, name)
    earlier = earlier_folds(config, root, name, table[valid]["id"], False)
    return prepare_fold(config, name, 0, folder / "fold", table, train, valid[:0], log, earlier)


def worst_batches(dataset: Any, data: Any) -> list[np.ndarray]:
    """Rows of batches that need most of one thing each: frames, their square, units, units of all frames (a lattice).

    Of a plan without chance, where the longest rows are together, and of one of the rows with most units.
    """
    frames, units = dataset.frames(0), getattr(dataset, "units", None)
    batches = plan_dataset(dataset, data, 0)
    if units is None:
        units = np.zeros(len(frames), dtype=np.int64)
    else:
        wordy = np.argsort(-units, kind="stable")[: data.max_items]
        batches += [wordy[batch] for batch in plan_dataset(dataset, data, 0, rows=wordy)]
    shapes = np.array([(len(batch), frames[batch].max(), units[batch].max()) for batch in batches], dtype=np.float64)
    items, longest, most = shapes.T
    sizes = (items * longest, items * longest**2, items * most, items * longest * most)
    return [batches[index] for index in dict.fromkeys(int(np.argmax(size)) for size in sizes)]


def train_on(trainer: FoldTrainer, rows: np.ndarray) -> dict[str, float]:
    """Two steps on the rows, each as long as augmentation makes it; the second one's values.

    The optimiser's state is there from the first step on, which the second one's peak counts.
    """
    data = trainer.job.train
    epochs = range(DRAWS if trainer.config.augment else 1)
    drawn = [max((data[epoch, int(row)] for epoch in epochs), key=lambda example: example.frames) for row in rows]
    batch: Batch = collate(drawn)
    work = Work([batch] * trainer.config.train.accumulate, 0.0, 0.5)
    trainer.step(work)
    return trainer.step(work)


def allowed_memory(device: torch.device, limit: int | None) -> int:
    """The limit, in bytes; where there is none, nearly all of a GPU."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return min(whole, limit or round(0.95 * whole))
    if limit is None:
        raise InputError(f"{device.type} memory is shared with everything else: say how much with --memory-gib")
    return limit


def cap_memory(device: torch.device, limit: int) -> None:
    """Let an allocation beyond the limit (on a CPU far beyond) fail, rather than the machine."""
    if device.type == "cuda":
        share = limit / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(share, device)
    elif sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (2 * limit, 2 * limit))


def peak_memory(device: torch.device) -> int:
    """Bytes at most that this process has had: of the GPU, or all its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
