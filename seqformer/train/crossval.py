"""Cross-validation: train the folds of a run one after another, and put their out-of-fold predictions together."""

import io
import json
import os
import time
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from seqformer.augment.compose import Augment
from seqformer.checkpoint import write_file
from seqformer.config import Run, Train, build_config, read_config, write_config
from seqformer.data.dataset import VALID, draw_seed
from seqformer.data.folds import assign_folds, fold_names, split_rows
from seqformer.data.lineage import INHERITED
from seqformer.data.manifest import manifest_hash, read_manifest
from seqformer.data.sampler import frame_budget, padding_share, plan_batches
from seqformer.data.sampling import RowSampler
from seqformer.data.targets import Targets, Units, fit_targets
from seqformer.data.text import unknown_symbols
from seqformer.errors import InputError, first_few
from seqformer.model import head_parts
from seqformer.predict import (
    REMEMBERED,
    build_model,
    head_target,
    load_fold,
    load_targets,
    main_head,
    make_dataset,
    predict_dataset,
    score,
    truth_of,
)
from seqformer.registry import check, lookup
from seqformer.train.log import RunLog
from seqformer.train.loop import FoldJob, FoldTrainer, Position
from seqformer.train.optim import check_optimizer
from seqformer.train.stages import EarlierFold, earlier_folds, start_from
from seqformer.train.teacher import load_teacher

if TYPE_CHECKING:
    import polars

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# Keys that change how a run is carried out, not what comes out of it: a run goes on with other values of these.
FREE = (
    "folds.use",
    "data.workers",
    "train.device",
    "train.devices",
    "train.strategy",
    "train.threads",
    "train.save_every",
)


def train_run(plain: dict[str, Any], root: Path, accept_changes: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the folds that a config asks for, skipping finished ones, and return what metrics.json holds.

    Raises InputError on a faulty config or manifest, or a run folder made with another config or manifest, before
    anything is written: the folder is made when the first fold is ready to train.
    """
    import polars

    config = build_config(plain)
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train)))
    check_parts(config)
    table = read_manifest(config.data.manifest, config.data.where)
    kinds = {key: getattr(config.folds, key) for key in ("kind", "n", "by", "stratify", "valid")}
    folds = assign_folds(table, **kinds, seed=config.seed if config.folds.seed is None else config.folds.seed)
    splits = {name: split_rows(folds, name) for name in fold_names(folds, config.folds.use)}
    fabric = make_fabric(config.train)
    folder, table_hash = root / config.run, manifest_hash(config.data.manifest)
    if not accept_changes:
        refuse_changes(folder, plain, table_hash)
    places = {name: folder / ("full" if name == "full" else f"fold{name}") for name in splits}
    earlier = {
        name: earlier_folds(config, root, name, table[valid]["id"], trained(places[name]))
        for name, (_, valid) in splits.items()
        if not (places[name] / "done.json").exists()
    }
    first = fabric.global_rank == 0
    with RunLog(folder / "log.jsonl" if first else None, quiet or not first) as log:
        log.say(f"{config.run}: {table.height} rows, folds {', '.join(splits)} of {folds.max() + 1}, in {folder}")
        for done, (name, (train, valid)) in enumerate(splits.items()):
            log.progress("folds", done, len(splits))
            fold = places[name]
            if (fold / "done.json").exists():
                log.say(f"fold {name}: finished before, skipped")
                continue
            started = time.perf_counter()
            key = int(folds.max()) + 1 if name == "full" else int(name)
            job = prepare_fold(config, name, key, fold, table, train, valid, log, earlier[name])
            if first:
                fold.mkdir(parents=True, exist_ok=True)
                write_file(folder / "manifest_hash", table_hash + "\n")
                write_table(table.select("id").with_columns(fold=folds), folder / "folds.parquet")
                write_file(folder / "config.yaml", write_config(plain))
                if "pretrained" in config.backbone:
                    write_file(fold / REMEMBERED, json.dumps(job.model.backbone.part, indent=1) + "\n")
                if earlier[name] and not trained(fold):
                    seen = sorted(set().union(*(one.seen for one in earlier[name].values())))
                    write_table(polars.DataFrame({"id": seen}), fold / INHERITED)
                write_file(fold / "targets.json", job.targets.to_json())
            trainer = FoldTrainer(job, fabric)
            for work in trainer.work():
                trainer.step(work)
            finish_fold(job, fabric, trainer.at, time.perf_counter() - started)
        log.progress("folds", len(splits), len(splits))
        return summarize(folder, config, log, write=first)


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
    such device.
    """
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
            own = ("name", "weight", "at", "train_only") if kind == "head" else ("name",)  # not for its constructor
            arguments = {key: value for key, value in part.items() if key not in own}
            check(kind, part["name"], arguments, f"config: {kind}", passed)
    check_optimizer(config.optim.name)


def trained(folder: Path) -> bool:
    """Whether anything in a fold's folder took time to make."""
    return (folder / "done.json").exists() or any(folder.glob("last*/state.json"))


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


def prepare_fold(
    config: Run,
    name: str,
    key: int,
    folder: Path,
    table: "polars.DataFrame",
    train: np.ndarray,
    valid: np.ndarray,
    log: RunLog,
    earlier: dict[str, EarlierFold],
) -> FoldJob:
    """Fit the targets on the fold's training rows, and make its model and datasets; nothing is written.

    ``earlier``: folds of other runs that it starts from or is taught by, see ``seqformer.train.stages``.
    """
    train_rows, valid_rows = keep_short(table[train], config, name, log), table[valid]
    heads = head_parts(config.head).values()
    columns = list(dict.fromkeys(map(head_target, heads)))
    weights = list(dict.fromkeys(part["weights"] for part in heads if part.get("weights")))
    if trained(folder):
        targets = load_targets(folder)
        targets.require_fitted_on(train_rows["id"])
    else:
        targets = fit_targets(train_rows, columns, asdict(config.text) if config.text else None, table, weights)
    report_unknown(targets, valid_rows, name, log)
    torch.manual_seed(draw_seed(config.seed, key))
    model = build_model(config, targets, folder if trained(folder) else None)
    report_features(config, getattr(model.backbone, "features", {}), name, log)
    rate = getattr(model.frontend, "rate", None)
    augment = Augment(config.augment) if config.augment else None
    data = make_dataset(config, train_rows, targets, rate, augment=augment, training=True)
    if hasattr(model.frontend, "fit") and not trained(folder):
        # As they are, without augmentation; examples that are no rows exist in an epoch only.
        epoch = VALID if len(data) == len(train_rows) else 0
        model.frontend.fit(data[epoch, index].inputs for index in range(len(data)))
    if "init_from" in earlier:
        start_from(model, targets, earlier["init_from"], config.init_skip)
    teacher = load_teacher(config, earlier["teacher"], model, targets) if "teacher" in earlier else None
    sampler = None
    if config.sampling is not None:
        if len(data) != len(train_rows):
            raise InputError(f"sampling draws rows, but dataset {config.dataset['name']!r} makes its examples up")
        sampler = RowSampler(train_rows, config.sampling, [config.seed, key])
    frames = data.frames(0)[sampler(0) if sampler else slice(None)]
    plan = plan_batches(frames, frame_budget(config.data, data.rate), config.data.max_items, [config.seed, key])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.say(
        f"fold {name}: {len(frames)} examples to train on, {len(valid_rows)} rows to validate on, "
        f"{parameters:,} parameters, {len(plan)} batches an epoch, padding {padding_share(frames, plan):.1%}"
    )
    held_out = make_dataset(config, valid_rows, targets, rate) if len(valid) else None
    return FoldJob(config, name, key, folder, model, targets, data, held_out, log, sampler, teacher)


def keep_short(rows: "polars.DataFrame", config: Run, name: str, log: RunLog) -> "polars.DataFrame":
    """Training rows up to ``max_seconds``; the others are counted and named, never dropped silently."""
    limit = config.data.max_seconds
    if limit is None:
        return rows
    if "rate" not in rows.columns:
        raise InputError("data.max_seconds needs a rate in the manifest")
    long = rows["frames"] > limit * rows["rate"]
    if long.any():
        log.say(
            f"fold {name}: {long.sum()} rows above {limit:g} s are not trained on: {first_few(rows.filter(long)['id'])}"
        )
    if long.all():
        raise InputError(f"data.max_seconds: no training row is as short as {limit:g} s")
    return rows.filter(~long)


def report_unknown(targets: Targets, valid: "polars.DataFrame", name: str, log: RunLog) -> None:
    """Say how many validation texts hold characters that no training row has: they count as errors in the score."""
    for column, encoder in targets.encoders.items():
        if isinstance(encoder, Units):
            found = [text for text in valid[column].to_list() if unknown_symbols(encoder.tokenizer, text or "")]
            if found:
                log.say(f"fold {name}: {len(found)} validation texts hold characters or words not seen in training")


def report_features(config: Run, trained_on: dict[str, Any], name: str, log: RunLog) -> None:
    """Say where the features of a run differ from those that the checkpoint it starts from was trained on."""
    if trained_on.get("name") != config.frontend["name"]:
        return
    usual = {key: value.default for key, value in signature(lookup("frontend", trained_on["name"])).parameters.items()}
    free = {"spec_augment", "dither"}  # noise of training
    theirs, ours = ({key: part.get(key, usual[key]) for key in usual} for part in (trained_on, config.frontend))
    found = [f"{key} {theirs[key]!r}" for key in usual if key not in free and theirs[key] != ours[key]]
    if found:
        log.say(f"fold {name}: the checkpoint was trained on features with {', '.join(found)}; the config has others")


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
