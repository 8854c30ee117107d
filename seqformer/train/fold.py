"""One fold made ready to train: its rows, targets, model and datasets. Nothing is written here."""

from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seqformer.augment.compose import Augment
from seqformer.config import Run
from seqformer.data.dataset import VALID, draw_seed
from seqformer.data.provenance import join_rows
from seqformer.data.sampler import padding_share, plan_dataset
from seqformer.data.sampling import RowSampler
from seqformer.data.targets import Made, Targets, Units, fit_targets
from seqformer.data.text import unknown_symbols
from seqformer.errors import InputError, first_few
from seqformer.model import SequenceModel, head_parts
from seqformer.predict import build_model, head_target, load_targets, made_targets, make_dataset
from seqformer.registry import lookup
from seqformer.train.log import RunLog
from seqformer.train.loop import FoldJob
from seqformer.train.stages import EarlierFold, start_from
from seqformer.train.teacher import load_teacher

if TYPE_CHECKING:
    import polars


def trained(folder: Path) -> bool:
    """Whether anything in a fold's folder took time to make."""
    return (folder / "done.json").exists() or any(folder.glob("last*/state.json"))


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
    extra: "polars.DataFrame | None" = None,
) -> FoldJob:
    """Fit on the fold's training rows, and make its model and datasets.

    ``earlier``: folds of other runs that it starts from or is taught by, see ``seqformer.train.stages``; ``extra``:
    pseudo-labelled rows to train on beside its own.
    """
    own, valid_rows = keep_short(table[train], config, name, log), table[valid]
    targets = fold_targets(config, folder, own, table)
    report_unknown(targets, valid_rows, name, log)
    torch.manual_seed(draw_seed(config.seed, key))
    model = build_model(config, targets, folder if trained(folder) else None)
    report_features(config, getattr(model.backbone, "features", {}), name, log)
    rate = getattr(model.frontend, "rate", None)
    augment = Augment(config.augment, rate) if config.augment else None
    rows = join_rows(own, None if extra is None else keep_short(extra, config, name, log))
    data = make_dataset(config, rows, targets, rate, augment=augment, training=True)
    as_rows = len(data) == len(rows)
    if hasattr(model.frontend, "fit") and not trained(folder):
        fit_frontend(model, data, own.height if as_rows else None)
    fit_heads(model, data, targets, own if as_rows else None)
    if "init_from" in earlier:
        start_from(model, targets, earlier["init_from"], config.init_skip)
    teacher = load_teacher(config, earlier["teacher"], model, targets) if "teacher" in earlier else None
    if getattr(data, "plays_on_device", False):
        require_players(model, teacher.model if teacher else model)
    sampler = row_sampler(config, data, rows, key)
    report_size(config, name, key, model, data, sampler, len(valid_rows), log)
    held_out = make_dataset(config, valid_rows, targets, rate) if len(valid) else None
    return FoldJob(config, name, key, folder, model, targets, data, held_out, log, sampler, teacher)


def require_players(*models: SequenceModel) -> None:
    """Raise InputError unless something in each model's frontend plays samples faster or slower."""
    for frontend in (model.frontend for model in models):
        if not any(getattr(part, "plays", False) for part in frontend.modules()):
            name = type(frontend).__name__
            raise InputError(f"dataset.speed_on is 'device', which frontend {name} cannot do; use 'worker', or logmel")


def fold_targets(config: Run, folder: Path, own: "polars.DataFrame", table: "polars.DataFrame") -> Targets:
    """The targets of a fold: as it has trained with them, or fitted on its own rows."""
    if trained(folder):
        targets = load_targets(folder)
        targets.require_fitted_on(own["id"])
        return targets
    heads = head_parts(config.head).values()
    made = made_targets(config.frontend)
    columns = [name for name in dict.fromkeys(map(head_target, heads)) if name not in made]
    weights = list(dict.fromkeys(part["weights"] for part in heads if part.get("weights")))
    text, hmm = (asdict(part) if part else None for part in (config.text, config.hmm))
    targets = fit_targets(own, columns, text, table, weights, hmm)
    used = made.keys() & set(map(head_target, heads))
    return Targets({name: Made(made[name]) for name in sorted(used)} | targets.encoders, targets.fitted_on)


def fit_frontend(model: SequenceModel, data: Any, rows: int | None) -> None:
    """Fit the frontend on the first ``rows`` examples as they are; on all of an epoch, where examples are no rows."""
    keys = [(0, index) for index in range(len(data))] if rows is None else [(VALID, row) for row in range(rows)]
    model.frontend.fit(data[key].inputs for key in keys)


def fit_heads(model: SequenceModel, data: Any, targets: Targets, own: "polars.DataFrame | None") -> None:
    """Fit what heads learn of targets alone on the fold's ``own`` rows; on all of an epoch, where examples are no rows.

    No checkpoint holds it: a fold that goes on fits it again.
    """
    for head in model.heads.values():
        if hasattr(head, "fit"):
            if own is None:
                head.fit(data[0, index].targets[head.target] for index in range(len(data)))
            else:
                head.fit(map(targets.encoders[head.target].encode, own[head.target]))


def row_sampler(config: Run, data: Any, rows: "polars.DataFrame", key: int) -> RowSampler | None:
    """What draws the rows of an epoch, where the config has it drawn."""
    if config.sampling is None:
        return None
    if len(data) != len(rows):
        raise InputError(f"sampling draws rows, but dataset {config.dataset['name']!r} makes its examples up")
    return RowSampler(rows, config.sampling, [config.seed, key])


def report_size(config: Run, name: str, key: int, model, data, sampler, held_out: int, log: RunLog) -> None:
    """One line: examples, parameters, batches and padding of the first epoch."""
    rows = sampler(0) if sampler else np.arange(len(data))
    frames, plan = data.frames(0)[rows], plan_dataset(data, config.data, 0, [config.seed, key], rows=rows)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.say(
        f"fold {name}: {len(frames)} examples to train on, {held_out} rows to validate on, "
        f"{parameters:,} parameters, {len(plan)} batches an epoch, padding {padding_share(frames, plan):.1%}"
    )


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
