"""Cross-validation: train the folds of a run, and put their out-of-fold predictions together."""

import io
import json
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from seqformer import kernels
from seqformer.checkpoint import write_file
from seqformer.config import Run, Train, build_config, read_config, write_config
from seqformer.data.folds import assign_folds, fold_names, folder_of, split_rows
from seqformer.data.lineage import INHERITED
from seqformer.data.manifest import manifest_hash, read_manifest
from seqformer.data.provenance import check_own_targets, pseudo_rows
from seqformer.errors import InputError, first_few
from seqformer.model import OF_THE_MODEL, head_parts
from seqformer.predict import (
    REMEMBERED,
    load_fold,
    main_head,
    predict_dataset,
    score,
    truth_of,
)
from seqformer.registry import check
from seqformer.train.fold import prepare_fold, trained
from seqformer.train.log import RunLog
from seqformer.train.loop import FoldJob, FoldTrainer, Position
from seqformer.train.optim import check_optimizer
from seqformer.train.parallel import begin_log, gather_logs, train_in_parallel
from seqformer.train.stages import EarlierFold, earlier_folds

if TYPE_CHECKING:
    import polars

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# Keys that change how a run is carried out, not what comes out of it: a run goes on with other values of these.
FREE = (
    "folds.use",
    "folds.parallel",
    "data.workers",
    "data.prefetch",
    "train.device",
    "train.devices",
    "train.strategy",
    "train.threads",
    "train.save_every",
    "student",
)


@dataclass(frozen=True)
class OpenRun:
    """A run whose config and manifest are sound: its table, fold of each row, and by fold name what a fold needs."""

    plain: dict[str, Any]
    config: Run
    table: "polars.DataFrame"
    folds: np.ndarray
    splits: dict[str, tuple[np.ndarray, np.ndarray]]  # rows to train on and to validate
    extra: dict[str, "polars.DataFrame | None"]  # pseudo-labelled rows
    earlier: dict[str, dict[str, EarlierFold]]  # of folds not finished
    folder: Path
    table_hash: str

    @property
    def places(self) -> dict[str, Path]:
        return {name: self.folder / folder_of(name) for name in self.splits}

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"


def open_run(plain: dict[str, Any], root: Path, accept_changes: bool = False) -> OpenRun:
    """Read and check what a run is made of; raises InputError as ``train_run`` does, and writes nothing."""
    config = build_config(plain)
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train)))
    check_parts(config)
    table = read_manifest(config.data.manifest, config.data.where)
    folds = folds_of(config, table)
    splits = {name: split_rows(folds, name) for name in fold_names(folds, config.folds.use)}
    check_own_targets(table, folds)
    labels = [(path, read_manifest(path)) for path in config.data.pseudo], table, folds
    by = config.folds.by if "group" in config.folds.kind else None
    extra = {name: pseudo_rows(*labels, name, main_head(config.head)[1], by) for name in splits}
    folder, table_hash = root / config.run, manifest_hash(config.data.manifest, *config.data.pseudo)
    if not accept_changes:
        refuse_changes(folder, plain, table_hash)
    places = {name: folder / folder_of(name) for name in splits}
    earlier = {
        name: earlier_folds(config, root, name, table[valid]["id"], trained(places[name]))
        for name, (_, valid) in splits.items()
        if not (places[name] / "done.json").exists()
    }
    return OpenRun(plain, config, table, folds, splits, extra, earlier, folder, table_hash)


def train_run(plain: dict[str, Any], root: Path, accept_changes: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the folds that a config asks for, skipping finished ones, and return what metrics.json holds.

    Raises InputError on a faulty config or manifest, or a run folder made with another config or manifest, before
    anything is written: the folder is made when the first fold is ready to train, of parallel ones when they start.
    """
    run = open_run(plain, root, accept_changes)
    gather_logs(run.log, run.places)
    if run.config.folds.parallel > 1 and len(run.earlier) > 1:
        return _train_parallel(run, root, quiet)
    fabric = make_fabric(run.config.train)
    first = fabric.global_rank == 0
    with RunLog(run.log if first else None, quiet or not first) as log:
        _announce(run, log)
        for done, name in enumerate(run.splits):
            log.progress("folds", done, len(run.splits))
            if name not in run.earlier:
                log.say(f"fold {name}: finished before, skipped")
                continue
            started = time.perf_counter()
            trainer = begin_fold(run, name, fabric, log)
            for work in trainer.work():
                trainer.step(work)
            finish_fold(trainer.job, fabric, trainer.at, time.perf_counter() - started)
        log.progress("folds", len(run.splits), len(run.splits))
        return summarize(run.folder, run.config, log, write=first)


def _train_parallel(run: OpenRun, root: Path, quiet: bool) -> dict[str, Any]:
    """The folds of a run, some of them at a time; those that come to their end are kept when others fail."""
    if "WORLD_SIZE" in os.environ:
        raise InputError("folds.parallel trains a fold in one process; start it without torchrun, or set it to 1")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_facts(run)
    work = partial(_train_alone, run.plain, root, quiet)
    with RunLog(run.log, quiet) as log:
        _announce(run, log)
        try:
            train_in_parallel(work, list(run.earlier), run.config.folds.parallel, run.config.train.threads, log.say)
        finally:
            gather_logs(run.log, run.places)
        return summarize(run.folder, run.config, log)


def _train_alone(plain: dict[str, Any], root: Path, quiet: bool, name: str) -> None:
    """One fold of several that train at the same time; what they share was checked and written before."""
    use = name if name == "full" else int(name)
    plain = plain | {"folds": (plain.get("folds") or {}) | {"use": use}}
    run = open_run(plain, root, accept_changes=True)
    with RunLog(begin_log(run.log, name, run.places[name]), quiet, bars=False) as log:
        started, fabric = time.perf_counter(), make_fabric(run.config.train)
        trainer = begin_fold(run, name, fabric, log, shared=True)
        for work in trainer.work():
            trainer.step(work)
        finish_fold(trainer.job, fabric, trainer.at, time.perf_counter() - started)


def _announce(run: OpenRun, log: RunLog) -> None:
    among = f"folds {', '.join(run.splits)} of {run.folds.max() + 1}"
    log.say(f"{run.config.run}: {run.table.height} rows, {among}, in {run.folder}")


def begin_fold(run: OpenRun, name: str, fabric: Fabric, log: RunLog, shared: bool = False) -> FoldTrainer:
    """A fold ready to train, and its folder; ``shared``: other folds train beside it, what they share is written."""
    import polars

    fold, earlier = run.places[name], run.earlier[name]
    key = int(run.folds.max()) + 1 if name == "full" else int(name)
    job = prepare_fold(run.config, name, key, fold, run.table, *run.splits[name], log, earlier, run.extra[name])
    if fabric.global_rank == 0:
        fold.mkdir(parents=True, exist_ok=True)
        if not shared:
            write_facts(run)
        if "pretrained" in run.config.backbone:
            write_file(fold / REMEMBERED, json.dumps(job.model.backbone.part, indent=1) + "\n")
        if earlier and not trained(fold):
            seen = sorted(set().union(*(one.seen for one in earlier.values())))
            write_table(polars.DataFrame({"id": seen}), fold / INHERITED)
        write_file(fold / "targets.json", job.targets.to_json())
    return FoldTrainer(job, fabric)


def write_facts(run: OpenRun) -> None:
    """What the folds of a run share: its config, the manifest's hash, and the fold of each row."""
    write_file(run.folder / "manifest_hash", run.table_hash + "\n")
    write_table(run.table.select("id").with_columns(fold=run.folds), run.folder / "folds.parquet")
    write_file(run.folder / "config.yaml", write_config(run.plain))


def folds_of(config: Run, table: "polars.DataFrame") -> np.ndarray:
    """Fold number (rows,) of each row of a run's manifest."""
    kinds = {key: getattr(config.folds, key) for key in ("kind", "n", "by", "stratify", "valid")}
    return assign_folds(table, **kinds, seed=config.seed if config.folds.seed is None else config.folds.seed)


def resolve_precision(train: Train) -> str:
    """What ``auto`` means on this machine; a CPU gets fp32, for its bfloat16 can be ten times slower."""
    if train.precision != "auto":
        return train.precision
    if train.device == "cpu" or not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def make_fabric(train: Train) -> Fabric:
    """Device, precision and strategy; where a launcher such as torchrun started several processes, their group.

    The launcher's number of processes then counts, not ``train.devices``. Raises InputError when the machine has no
    such device, or cannot run the kernels asked for.
    """
    if train.kernels:
        kernels.use(True)
    if train.threads:
        torch.set_num_threads(train.threads)
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", train.devices))
    nodes = int(os.environ.get("WORLD_SIZE", devices)) // devices if "LOCAL_WORLD_SIZE" in os.environ else 1
    try:
        fabric = Fabric(
            accelerator=train.device,
            strategy=train.strategy,
            devices=devices,
            num_nodes=nodes,
            precision=PRECISION[train.precision],
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"config: train.device, devices or strategy: {' '.join(str(error).split())}") from error
    fabric.launch()
    return fabric


def check_parts(config: Run) -> None:
    """Check every name and keyword of a config against what is registered, before any data is read."""
    given = {
        "frontend": ((config.frontend,), ()),
        "backbone": ((config.backbone,), ("in_dim", "settings")),
        "head": (tuple(head_parts(config.head).values()), ("dim",)),
        "dataset": ((config.dataset,), ("table", "targets", "rate", "seed", "augment", "training")),
        "augment": (tuple(config.augment + config.tta), ()),
        "metric": ((config.metric,), ("predictions", "truth")),
    }
    for kind, (parts, passed) in given.items():
        for part in parts:
            own = ("name", *OF_THE_MODEL) if kind == "head" else ("name",)  # not for its constructor
            arguments = {key: value for key, value in part.items() if key not in own}
            check(kind, part["name"], arguments, f"config: {kind}", passed)
    check_optimizer(config.optim.name)


def refuse_changes(folder: Path, plain: dict[str, Any], table_hash: str) -> None:
    """Raise InputError when a run has trained with another config or manifest."""
    if not any(trained(path.parent) for path in folder.glob("*/targets.json")):
        return
    changed = differing_keys(read_config(folder / "config.yaml"), plain)
    if changed:
        raise InputError(
            f"{folder} was made with another config: {first_few(changed, 5)} differ; "
            "choose another run name, or pass --accept-changes"
        )
    if (folder / "manifest_hash").read_text().strip() != table_hash:
        raise InputError(f"{folder} was made with another {plain['data']['manifest']}; choose another run name")


def differing_keys(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two plain configs differ, those of FREE left out; a section not given is an empty one."""
    one, two = ({} if side is None else side for side in (first, second))
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(set(one) | set(two))
        return [found for key in keys for found in differing_keys(one.get(key), two.get(key), f"{prefix}{key}.")]
    key = prefix.rstrip(".")
    return [] if first == second or key in FREE else [key]


def finish_fold(job: FoldJob, fabric: Fabric, at: Position, seconds: float) -> None:
    """Predict the fold's validation rows with the selected checkpoint, write oof.parquet, then done.json, the mark."""
    import polars

    config, facts = job.config, {"fold": job.name, "epochs": at.epoch, "steps": at.step, "seconds": round(seconds, 1)}
    fabric.barrier()
    if job.valid is not None:
        head, column = main_head(config.head)
        model, targets = load_fold(job.folder, config, fabric.device)
        with fabric.autocast():
            predictions, _ = predict_dataset(model, job.valid, targets, config.data, fabric, config.tta, config.seed)
        ids = [str(row_id) for row_id in job.valid.ids]
        found, truth = [predictions[head][row_id] for row_id in ids], truth_of(job.valid, targets, column)
        facts |= {
            "rows": len(ids),
            config.metric["name"]: score(config.metric, found, truth),
            "best_epoch": at.best_epoch,
        }
        lists = [value if isinstance(value, str) else np.asarray(value).tolist() for value in found]
        truths = [value if isinstance(value, str) else np.asarray(value).tolist() for value in truth]
        table = polars.DataFrame({"id": ids, "fold": job.name, "prediction": lists, "truth": truths})
        if fabric.global_rank == 0:
            write_table(table, job.folder / "oof.parquet")
    if fabric.global_rank == 0:
        write_file(job.folder / "done.json", json.dumps(facts, indent=1) + "\n")
    fabric.barrier()


def write_table(table: "polars.DataFrame", path: Path) -> None:
    """A parquet file, whole or not at all."""
    content = io.BytesIO()
    table.write_parquet(content)
    write_file(path, content.getvalue())


def summarize(folder: Path, config: Run, log: RunLog, write: bool = True) -> dict[str, Any]:
    """Put the finished folds together: oof.parquet, metrics.json and the fold table.

    The out-of-fold score is the metric over all validated rows at once, each counted exactly once.
    """
    import polars

    done = [json.loads(path.read_text()) for path in sorted(folder.glob("*/done.json"))]
    name, scored = config.metric["name"], [facts for facts in done if "rows" in facts]
    found: dict[str, Any] = {"metric": name, "folds": done}
    if scored:
        table = polars.concat(
            [polars.read_parquet(folder / f"fold{facts['fold']}" / "oof.parquet") for facts in scored]
        )
        if table["id"].is_duplicated().any():
            raise InputError(f"{folder}: {first_few(table.filter(table['id'].is_duplicated())['id'])} validated twice")
        values = [facts[name] for facts in scored]
        found |= {"mean": float(np.mean(values)), "spread": float(np.std(values)), "rows": table.height}
        predictions, truth = (
            [np.asarray(v) if isinstance(v, list) else v for v in table[c].to_list()] for c in ("prediction", "truth")
        )
        found["out_of_fold"] = score(config.metric, predictions, truth)
        if write:
            write_table(table, folder / "oof.parquet")
    if write:
        write_file(folder / "metrics.json", json.dumps(found, indent=1) + "\n")
    rows = [
        [f["fold"], str(f.get("rows", "")), f"{f[name]:.4f}" if name in f else "", f"{f['seconds']:.0f}"] for f in done
    ]
    if scored:
        rows.append(["mean", "", f"{found['mean']:.4f}", ""])
        rows.append(["spread", "", f"{found['spread']:.4f}", ""])
        rows.append(["out of fold", str(found["rows"]), f"{found['out_of_fold']:.4f}", ""])
    log.table(f"{config.run}", ["fold", "rows", name, "seconds"], rows)
    return found
