"""The training loop of one fold, on lightning-fabric (device, precision, strategy).

Nothing random outlives a step: batches, augmentation and dropout are functions of (seed, fold, epoch, batch), the
learning rate of the share of training done. So a checkpoint holds tensors and a position, and resuming is exact.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric

from seqformer import checkpoint
from seqformer.batch import Batch
from seqformer.config import Run
from seqformer.data.dataset import draw_seed
from seqformer.data.loader import load_batches
from seqformer.data.sampler import plan_dataset
from seqformer.data.sampling import RowSampler, count_repeats, scheduled
from seqformer.data.targets import Targets
from seqformer.errors import InputError, first_few
from seqformer.model import SequenceModel
from seqformer.predict import main_head, predict_dataset, score, truth_of
from seqformer.registry import lookup
from seqformer.train.adversary import perturbed
from seqformer.train.compile import bucket, compilations, compile_backbone, uncompiled
from seqformer.train.log import Meter, RunLog
from seqformer.train.optim import averaged, learning_rate, make_optimizer
from seqformer.train.teacher import Teacher
from seqformer.train.throughput import StepFlops, matmul_speed, model_flops

MOST_SKIPPED = 20  # steps in a row without a finite gradient: then it is no accident


@dataclass
class Position:
    """Where a fold stands: ``epoch`` is running, ``batch`` of its batches are done. Saved in state.json as it is."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0  # steps since the last finite gradient
    best: float | None = None
    best_epoch: int = 0
    finished: bool = False


@dataclass(frozen=True)
class FoldJob:
    """What training one fold needs; ``key`` numbers the fold for its random draws."""

    config: Run
    name: str
    key: int
    folder: Path
    model: SequenceModel
    targets: Targets
    train: Any  # a dataset, see SequenceDataset
    valid: Any | None
    log: RunLog
    sampler: RowSampler | None = None  # which rows an epoch trains on; default: all
    teacher: Teacher | None = None


class Work(NamedTuple):
    """Batches of one optimiser step, seconds waited for them, and the share (0, 1] of training done after it."""

    group: list[Batch]
    waited: float
    share: float


class FoldTrainer:
    """Trains one fold, from its newest checkpoint where there is one; see ``work``."""

    def __init__(self, job: FoldJob, fabric: Fabric):
        self.job, self.fabric, self.config = job, fabric, job.config
        train = job.config.train
        optimizer = make_optimizer(job.model, job.config.optim, fused=self.scaler is None)
        self.model, self.optimizer = fabric.setup(job.model, optimizer)
        self.average = averaged(job.model, train.ema or None) if train.ema or train.swa else None
        # What the frames of a batch are a multiple of. Compiled after the average has its copy, which is not.
        self.multiple = bucket(job.model.frontend, job.model.backbone) if train.compile else 1
        if train.compile:
            compile_backbone(job.model.backbone, train.compile)
        if job.teacher:
            job.teacher.model.to(fabric.device)
        self.at, self.meter = Position(), Meter()
        saved = job.model.state_dict().keys()
        self.buffers = [buffer for name, buffer in job.model.named_buffers() if name in saved]
        self.before = [buffer.clone() for buffer in self.buffers]  # as they were before the running step
        self.plan = functools.lru_cache(maxsize=2)(self.plan)  # the loader is an epoch ahead at most
        self.ceiling, self.flops = 0.0, StepFlops(0.0, 0.0, 0.0)

    @property
    def eval_model(self) -> SequenceModel:
        """The weights to use: the averaged ones where there are, and as soon as there are."""
        return self.average.module if self.average and int(self.average.n_averaged) else self.job.model

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of fp16."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def work(self) -> Iterator[Work]:
        """What is left to do, an optimiser step at a time: ``for work in trainer.work(): trainer.step(work)``.

        Resumes before the first, saves on the way, and validates and saves after each epoch, until the last one or
        until patience runs out. (A generator, so that it stands between no step and its caller.)
        """
        at, train = self.at, self.config.train
        self.resume()
        data = self.config.data
        device, multiple = self.fabric.device, self.multiple
        loader = load_batches(self.job.train, self.keys(), data.workers, device, data.prefetch, multiple)
        while not at.finished:
            self.meter, batches = Meter(), self.plan(at.epoch)
            self.model.train()
            self.tell("begin_epoch", self.at.epoch)
            for group, waited in self.groups(loader, len(batches)):
                yield Work(group, waited, (at.epoch + (at.batch + len(group)) / len(batches)) / train.epochs)
                self.job.log.progress(f"fold {self.job.name} batches", at.batch, len(batches))
                if train.save_every and at.step % train.save_every == 0 and at.batch < len(batches):
                    self.save("last")
            at.epoch, at.batch = at.epoch + 1, 0
            at.finished = at.epoch >= train.epochs
            if train.swa and at.epoch > round(train.swa * train.epochs, 6):
                self.average.update_parameters(self.job.model)
            if self.job.valid is not None and (at.epoch % train.validate_every == 0 or at.finished):
                self.validate()
            self.save("last")
            self.job.log.epoch(self.job.name, at.epoch, train.epochs, self.meter)

    def tell(self, what: str, number: int) -> None:
        """Tell every module that wants to know (``begin_epoch(epoch)``, ``begin_step(step)``) what begins, or goes on
        after a resume.

        What a module does then must be a function of the number: no checkpoint holds it.
        """
        for module in self.job.model.modules():
            if hasattr(module, what):
                getattr(module, what)(number)

    def step(self, work: Work) -> dict[str, float]:
        """One optimiser step over the batches of a group; logs and returns its values."""
        start, fabric, train, compiled = time.perf_counter(), self.fabric, self.config.train, compilations()
        group, lr = work.group, learning_rate(work.share, self.config.optim)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr * parameters["lr_scale"]
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        self.tell("begin_step", self.at.step)
        items, loss, infeasible = self.all_ranks(sum(float(batch.weight.sum()) for batch in group)), 0.0, 0
        asked = {"logits": self.job.teacher.head} if self.job.teacher else {}
        for clean in self.passes():
            for index, batch in enumerate(group):
                batch = batch.to(fabric.device)
                with fabric.no_backward_sync(self.model, enabled=index + 1 < len(group)):
                    found = self.model(batch.inputs, batch.mask, batch.targets, batch.weight, **asked)
                    # Each batch counts by its items, so that accumulation and processes add up to one large batch.
                    share = self.total(found, batch) * (batch.weight.sum() / max(items, 1e-8))
                    fabric.backward(share * fabric.world_size)
                if clean:
                    loss += share.detach()
                    infeasible += found.get("infeasible", 0)
        limit = train.clip or math.inf
        norm = fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.update(group, float(norm))
        self.at.batch, self.at.step = self.at.batch + len(group), self.at.step + 1
        values = self.measured(work, start) | {
            "loss": self.all_ranks(float(loss)), "lr": lr, "grad_norm": float(norm), "infeasible": int(infeasible)
        }  # fmt: skip
        if train.compile:
            values["recompiles"] = compilations() - compiled
        self.meter.add(**values)
        self.job.log.record(fold=self.job.name, epoch=self.at.epoch, step=self.at.step, **values)
        return values

    def passes(self) -> Iterator[bool]:
        """Passes over the batches of a step, True for the first, a second one only where weights are perturbed.

        Both have the same draws of dropout and noise. (A generator, as ``work``.)
        """
        at, awp, rank = self.at, self.config.train.awp, self.fabric.global_rank
        seed = draw_seed(self.config.seed, self.job.key, at.epoch, at.batch, rank)
        torch.manual_seed(seed)
        yield True
        if awp and at.epoch >= awp.from_epoch:
            with perturbed(self.job.model, awp):
                self.optimizer.zero_grad(set_to_none=True)
                torch.manual_seed(seed)
                yield False

    def total(self, found: dict[str, Any], batch: Batch) -> torch.Tensor:
        """The loss to minimise: the model's own, or what is left of it beside the distance to a teacher."""
        if self.job.teacher is None:
            return found["loss"]
        with self.fabric.autocast():
            return self.job.teacher.loss(found, batch)

    def update(self, group: list[Batch], norm: float) -> None:
        """Move the weights, unless the gradient is not finite: then skip and name the batch, and stop if it goes on.

        A skipped step leaves nothing behind, in the running statistics of a BatchNorm neither.
        """
        finite, train = math.isfinite(norm), self.config.train
        if finite or self.scaler:  # the loss scaler of fp16 skips by itself, and learns from it
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:
            self.at.skipped = 0
            if train.ema:
                self.average.update_parameters(self.job.model)
            return
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)
        self.at.skipped += 1
        ids, step = self.suspects(group), self.at.step + 1
        self.job.log.record(fold=self.job.name, epoch=self.at.epoch, step=step, skipped=ids)
        line = f"fold {self.job.name}, step {step}: gradient norm {norm}; step skipped; batch: {first_few(ids, 5)}"
        if self.at.skipped >= MOST_SKIPPED:
            raise InputError(f"{line}; {self.at.skipped} steps in a row: lower optim.lr, or look at these rows")
        self.job.log.say(line)

    def suspects(self, group: list[Batch]) -> list[str]:
        """Row ids of a group of batches, of all processes, those with an input that is not finite first."""
        sound = {}
        for batch in group:
            for index, row_id in enumerate(batch.ids):
                sound[row_id] = all(bool(tensor[index].isfinite().all()) for tensor in batch.inputs.values())
        shares = [sound] * self.fabric.world_size
        if len(shares) > 1:
            torch.distributed.all_gather_object(shares, sound)
        found = {row_id: whole for share in shares for row_id, whole in share.items()}
        return sorted(found, key=found.__getitem__)

    def measured(self, work: Work, start: float) -> dict[str, float]:
        """Frames per second, padding share, loader wait and MFU of a step that began at ``start``."""
        lengths = [batch.mask.sum(dim=1) for batch in work.group]
        seconds, frames = time.perf_counter() - start + work.waited, float(sum(each.sum() for each in lengths))
        flops = sum(map(self.flops.of, lengths))
        return {
            "frames_per_s": frames / seconds,
            "padding": 1 - frames / sum(batch.mask.numel() for batch in work.group),
            "wait": work.waited / seconds,
            "mfu": flops / seconds / self.ceiling,
            "seconds": seconds,
        }

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Keys (items, 2) of all batches of this rank for an epoch: a function of (seed, fold, epoch)."""
        data, seed = self.config.data, self.config.seed
        world, rank = self.fabric.world_size, self.fabric.global_rank
        rows = self.job.sampler(epoch) if self.job.sampler else np.arange(len(self.job.train))
        # A row drawn again is augmented as in an epoch that never comes, not as the first time.
        epochs = epoch + self.config.train.epochs * count_repeats(rows)
        batches = plan_dataset(self.job.train, data, epoch, [seed, self.job.key], world, rows, self.multiple)
        return [np.stack([epochs[batch], rows[batch]], axis=1) for batch in batches[rank::world]]

    def keys(self) -> Iterator[np.ndarray]:
        """Keys of the batches not done yet, an epoch after another, so that one loader serves the whole fold."""
        done = self.at.batch
        for epoch in range(self.at.epoch, self.config.train.epochs):
            yield from self.plan(epoch)[done:]
            done = 0

    def groups(self, loader: Iterator[Batch], count: int) -> Iterator[tuple[list[Batch], float]]:
        """An epoch's batches not done yet, ``accumulate`` at a time, with the seconds the loop waited for them."""
        size = self.config.train.accumulate
        for first in range(self.at.batch, count, size):
            start = time.perf_counter()
            group = [self.weighed(next(loader)) for _ in range(first, min(first + size, count))]
            waited = time.perf_counter() - start
            if not self.ceiling:
                self.flops = model_flops(self.job.model, group[0])
                self.ceiling = matmul_speed(self.fabric.device, self.config.train.precision)
            yield group, waited

    def weighed(self, batch: Batch) -> Batch:
        """The batch with its row weights to the power of the epoch; 0 stays 0, and its row unused, at power 0 too."""
        power = scheduled(self.config.train.weight_power, self.at.epoch)
        if power == 1:
            return batch
        return replace(batch, weight=torch.where(batch.weight > 0, batch.weight**power, batch.weight))

    def validate(self) -> None:
        """Score the fold's own rows; note the best, and stop when ``patience`` epochs brought no better."""
        at, train, job = self.at, self.config.train, self.job
        with self.fabric.autocast(), uncompiled():
            predictions, loss = predict_dataset(self.eval_model, job.valid, job.targets, self.config.data, self.fabric)
        name, (head, column) = self.config.metric["name"], main_head(self.config.head)
        found = [predictions[head][str(row_id)] for row_id in job.valid.ids]
        value = score(self.config.metric, found, truth_of(job.valid, job.targets, column))
        job.log.record(fold=job.name, epoch=at.epoch - 1, step=at.step, valid_loss=loss, **{name: value})
        self.meter.note(valid=loss, **{name: value})
        sign = -1 if lookup("metric", name).higher_is_better else 1
        if at.best is None or math.isnan(at.best) or sign * value < sign * at.best:
            at.best, at.best_epoch = value, at.epoch
            if train.select == "best":
                self.save("best")
        elif train.patience is not None and at.epoch - at.best_epoch >= train.patience:
            at.finished = True

    def save(self, name: str) -> None:
        """Write the checkpoint ``name`` (rank 0)."""
        if self.fabric.global_rank:
            return
        optim, plain = checkpoint.flatten_optimizer(self.optimizer)
        tensors = {f"optim.{key}": value for key, value in optim.items()}
        state = {**asdict(self.at), "fold": self.job.name, "targets": self.job.targets.fitted_on}
        state |= {"world": self.fabric.world_size, "optimizer": self.config.optim.name, "optim": plain}
        state["teacher"] = self.job.teacher.digest if self.job.teacher else None
        state["averages"] = int(self.average.n_averaged) if self.average else 0
        if self.eval_model is not self.job.model:
            tensors |= {f"raw.{key}": value for key, value in self.job.model.state_dict().items()}
        state["scaler"] = self.scaler.state_dict() if self.scaler else {}
        checkpoint.save_checkpoint(self.job.folder / name, self.eval_model.state_dict(), tensors, state)

    def resume(self) -> None:
        """Take up the newest checkpoint of this fold that verifies, if there is one."""
        folder = self.job.folder / "last"
        if self.fabric.global_rank == 0:  # the one that may move folders
            checkpoint.find_checkpoint(folder)
        self.fabric.barrier()
        state = checkpoint.verify(folder)
        self.job.log.forget(self.job.name, state["step"] if state else -1)
        if state is None:
            return
        if state["targets"] != self.job.targets.fitted_on:
            raise InputError(f"{folder} was trained on other rows than fold {self.job.name} has now")
        model, rest = checkpoint.load_weights(folder), checkpoint.load_weights(folder, "optim.safetensors")
        raw = {key.removeprefix("raw."): value for key, value in rest.items() if key.startswith("raw.")}
        checkpoint.put_weights(self.job.model, raw or model, folder)
        if state["optimizer"] != self.config.optim.name:
            raise InputError(f"{folder} holds the state of optim.name: {state['optimizer']}")
        if state.get("teacher") != (self.job.teacher.digest if self.job.teacher else None):
            raise InputError(f"{folder} was taught by other weights than those of teacher.run now")
        if self.average and state["averages"]:
            self.average.module.load_state_dict(model)
            self.average.n_averaged.fill_(state["averages"])
        optim = {key.removeprefix("optim."): value for key, value in rest.items() if key.startswith("optim.")}
        checkpoint.restore_optimizer(self.optimizer, optim, state["optim"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        for key in asdict(self.at):
            setattr(self.at, key, state[key])
        # Another number of processes: the same share of the epoch is done, to within a step, but not of the same rows.
        self.at.batch = self.at.batch * state["world"] // self.fabric.world_size
        self.job.log.say(f"fold {self.job.name}: resumed at epoch {self.at.epoch}, step {self.at.step}")

    def all_ranks(self, value: float) -> float:
        """Sum over processes."""
        return (
            value
            if self.fabric.world_size == 1
            else float(self.fabric.all_reduce(torch.tensor(value), reduce_op="sum"))
        )
