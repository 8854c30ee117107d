"""One YAML is one run: frozen dataclasses, a strict loader, and nothing in a config that could run code.

Fixed sections are dataclasses. Pluggable ones (``frontend``, ``backbone``, ``head``, ``dataset``, ``augment``,
``metric``) are ``name`` + keywords of the registered function, whose signature is their schema. This is the only file
that imports omegaconf, and only to read YAML and ``key=value`` overrides into plain data.
"""

import copy
import dataclasses
import functools
import math
import operator
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seqformer.errors import InputError, nearest
from seqformer.registry import check_type, named

Part = dict[str, Any]
PLUGGABLE = ("frontend", "backbone", "head", "dataset", "augment", "metric")


@dataclass(frozen=True)
class Data:
    """Where the rows are and how they are batched; budgets are padded lengths, in seconds or in frames as read."""

    manifest: str
    where: dict[str, Any] = field(default_factory=dict)  # keep rows by {column: value or list of values}
    max_seconds: float | None = None  # longer rows are not trained on (counted in the log), but always validated
    batch_seconds: float | None = None
    batch_frames: int | None = None
    quadratic: float | None = None  # a row of this length counts twice in the budget: L as L + L^2 / quadratic
    batch_units: int | None = None  # a budget of padded target units besides; batches are then alike in units too
    max_items: int = 512
    workers: int = 0
    prefetch: int = 2  # batches that each worker reads ahead
    pseudo: list[str] = field(default_factory=list)  # manifests of `seqformer pseudo`: more rows to train on, by fold


@dataclass(frozen=True)
class Folds:
    """See ``seqformer.data.folds.assign_folds``; ``use``: a fold number, all, or full (train on everything)."""

    kind: Literal["kfold", "stratified", "group", "stratified_group", "column"] = "kfold"
    n: int = 5
    by: str | None = None
    stratify: str | None = None
    valid: list[Any] | None = None
    use: int | str = "all"
    parallel: int = 1  # folds trained at the same time on one device, see seqformer.train.parallel
    seed: int | None = None  # of the split; default: the run's, so that runs of several seeds share folds with one


@dataclass(frozen=True)
class Until:
    """Rows that match ``where`` are trained on before epoch ``epoch`` (counted from 0) and not after."""

    where: dict[str, Any]
    epoch: int


@dataclass(frozen=True)
class Sampling:
    """The rows of an epoch; see ``seqformer.data.sampling.RowSampler``. Epochs count from 0."""

    weight: str | None = None  # a column of numbers: rows are drawn with replacement, with chances weight ** power
    power: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1.0)])  # [first epoch, power]; 0: as without
    once_per: str | None = None  # one row an epoch for each value of this column
    once_where: dict[str, Any] = field(default_factory=dict)  # among rows that match; the others are all there
    items: int | None = None  # rows an epoch; default: as many as there are
    until: Until | None = None


@dataclass(frozen=True)
class Text:
    """Tokenizer of a text target; ``alphabet`` gives the characters instead of collecting them."""

    kind: Literal["chars", "words", "bpe"] = "chars"
    vocab: int = 128
    alphabet: str | None = None


@dataclass(frozen=True)
class Hmm:
    """Hidden Markov states of a target with an alignment; see ``seqformer.data.states``. Not for other targets."""

    states: int = 1  # of each unit, as the alignment was made
    prior_scale: float = 0.5  # of log p(state), taken off log p(state | frame)
    lexicon: str | None = (
        None  # a file, in each line a word, and its units or none; default: the words of the training texts
    )
    bonus: float = 0.0  # for each word, where no language model comes with its own
    beam: int = 1000  # paths after each frame


@dataclass(frozen=True)
class Optim:
    """Optimiser and schedule; ``warmup`` and ``hold`` are shares of all steps. ``name``: adamw or a timm optimiser."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["constant", "cosine", "one_cycle", "hold_decay"] = "cosine"
    warmup: float = 0.05
    hold: float = 0.0
    min_lr: float = 1e-6


@dataclass(frozen=True)
class Awp:
    """Adversarial weight perturbation; see ``seqformer.train.adversary``. A step costs two."""

    size: float  # of the move: a share of each matrix's norm or, not relative, a norm
    from_epoch: int = 0  # counted from 0
    relative: bool = True


@dataclass(frozen=True)
class Teacher:
    """Distillation from the same fold of an earlier run; see ``seqformer.train.teacher``."""

    run: str  # a run folder, or the name of one beside this run's
    weight: float = 0.5  # of the distance to the teacher in the loss; the targets have the rest
    temperature: float = 2.0
    head: str | None = None  # of both; default: the main head of each


@dataclass(frozen=True)
class Train:
    """The loop. ``select`` is the checkpoint that validates: the last, or the best by the metric on the same rows."""

    epochs: int
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  # auto: bf16 (or fp16) on a GPU, fp32 on a CPU
    compile: bool | Literal["graphs"] = False  # the backbone; graphs: as CUDA graphs, see seqformer.train.compile
    kernels: bool = False  # fused ones for a GPU, see seqformer.kernels; never run on one so far
    accumulate: int = 1
    clip: float = 1.0
    ema: float = 0.0  # decay of the averaged weights, 0 for none
    swa: float = 0.0  # share of the epochs after which each one's last weights are averaged equally, 0 for none
    awp: Awp | None = None
    select: Literal["last", "best"] = "last"
    patience: int | None = None  # epochs without improvement before stopping; needs select: best
    validate_every: int = 1  # epochs
    weight_power: list[tuple[int, float]] = field(
        default_factory=lambda: [(0, 1.0)]
    )  # of row weights, [first epoch, it]
    save_every: int | None = None  # steps, beside every epoch's end
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    strategy: str = "auto"
    threads: int | None = None  # of torch; default: all cores


@dataclass(frozen=True)
class Run:
    """A run: what is trained, on what, how, and what counts."""

    run: str
    data: Data
    frontend: Part
    backbone: Part
    head: Part  # or several, {a name of its own: part}
    train: Train
    competition: str | None = None
    seed: int = 0
    folds: Folds = field(default_factory=Folds)
    text: Text | None = None
    hmm: Hmm | None = None
    sampling: Sampling | None = None
    init_from: str | None = None  # a run folder, or the name of one beside this run's: fold k starts from its fold k
    init_skip: list[str] = field(default_factory=list)  # fnmatch patterns of weights that start afresh
    teacher: Teacher | None = None
    student: list[dict[str, Any]] = field(default_factory=list)  # {key: value} that generation 1, 2, ... has otherwise
    dataset: Part = field(default_factory=lambda: {"name": "rows"})
    augment: list[Part] = field(default_factory=list)
    tta: list[Part] = field(default_factory=list)  # transforms; a prediction is a mean over the row and its changes
    optim: Optim = field(default_factory=Optim)
    metric: Part = field(default_factory=lambda: {"name": "accuracy"})


def read_config(path: str | Path, overrides: list[str] = ()) -> dict[str, Any]:
    """YAML file and ``key=value`` overrides -> plain nested data. Raises InputError on unreadable YAML or override."""
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no config at {path}")
    _check_overrides(overrides, "train.epochs=10")
    try:
        found = OmegaConf.load(path)
    except Exception as error:  # PyYAML's errors among them, whose classes would need another import
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(found):
        raise InputError(f"{path}: expected sections such as run, data, backbone; found a list")
    try:
        plain = OmegaConf.to_container(found, resolve=False)
        for item in overrides:
            keys = item.partition("=")[0].split(".")
            change = OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False)
            _put(plain, keys, functools.reduce(operator.getitem, keys, change))
    except Exception as error:
        given = f"override {' '.join(overrides)}: " if overrides else ""
        raise InputError(f"{path}: {given}{' '.join(str(error).split())}") from error
    _refuse_interpolation(plain, str(path))
    return plain


def changed_config(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a plain config with other values, {dotted key: value}, each put as an override puts it.

    Raises InputError when a key leads through something without keys.
    """
    plain = copy.deepcopy(plain)
    try:
        for key, value in changes.items():
            _put(plain, key.split("."), value)
    except ValueError as error:
        raise InputError(f"config: student: {error}") from error
    return plain


def _put(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Take over one value of nested data. It takes the place of what was there, a section as much as a number:
    ``backbone={...}`` is the whole of it. Raises ValueError where the path leads through something without keys.
    """
    for depth, key in enumerate(path[:-1]):
        plain = plain.setdefault(key, {})
        if not isinstance(plain, dict):
            raise ValueError(f"{'.'.join(path[: depth + 1])} is {plain!r}, which has no keys; give it whole")
    plain[path[-1]] = value


def read_keywords(items: list[str], example: str = "dim=128") -> dict[str, Any]:
    """``key=value`` strings -> plain data, values as in YAML. Raises InputError as ``read_config`` does."""
    from omegaconf import OmegaConf

    _check_overrides(items, example)
    try:
        plain = OmegaConf.to_container(OmegaConf.from_dotlist(list(items)), resolve=False)
    except Exception as error:
        raise InputError(f"{' '.join(items)}: {' '.join(str(error).split())}") from error
    _refuse_interpolation(plain, " ".join(items))
    return plain


def _check_overrides(items: list[str], example: str) -> None:
    for item in items:
        if not re.match(r"[A-Za-z_][\w.]*=", item):
            raise InputError(f"override {item!r}: expected key=value, such as {example}")


def write_config(plain: dict[str, Any]) -> str:
    """Plain data as YAML text."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(plain))


def build_config(plain: dict[str, Any], where: str = "config") -> Run:
    """Fill the dataclasses strictly. Raises InputError naming key, value found, and the nearest key or the type."""
    run = _fill(Run, plain, where)
    for kind in PLUGGABLE:
        _check_named(kind, getattr(run, kind), where)
    _check_named("augment", run.tta, where)
    for part in run.tta:
        if "p" in part:
            raise InputError(
                f"{where}: tta: {part['name']!r} has p {part['p']}; there, every transform is always applied"
            )
    run = dataclasses.replace(run, backbone=named("backbone", run.backbone))
    if not re.fullmatch(r"[\w.-]+", run.run) or run.run.startswith("."):
        raise InputError(f"{where}: run {run.run!r} must be a plain folder name: letters, digits, '_', '-', '.'")
    if (run.data.batch_seconds is None) == (run.data.batch_frames is None):
        raise InputError(f"{where}: data needs one of batch_seconds and batch_frames")
    if run.train.patience is not None and run.train.select != "best":
        raise InputError(f"{where}: train.patience needs train.select: best")
    for key, (test, wanted) in _LIMITS.items():
        value = functools.reduce(lambda part, name: getattr(part, name, None), key.split("."), run)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not test(number):
                raise InputError(f"{where}: {key} is {number}; it must be {wanted}")
    _check_schedule(run.train.weight_power, f"{where}: train.weight_power")
    if run.sampling is not None:
        _check_sampling(run.sampling, where)
    if run.train.swa and run.train.ema:
        raise InputError(f"{where}: train.swa and train.ema both average the weights; give one of them")
    if run.folds.parallel > 1 and run.train.devices > 1:
        raise InputError(f"{where}: folds.parallel is of folds on one device; train.devices is {run.train.devices}")
    if run.init_skip and run.init_from is None:
        raise InputError(f"{where}: init_skip needs init_from, the run to start from")
    if run.optim.warmup + run.optim.hold > 1:
        raise InputError(f"{where}: optim.warmup and hold are shares of all steps; together they are above 1")
    if run.optim.schedule == "hold_decay" and not run.optim.warmup:
        raise InputError(f"{where}: optim.schedule hold_decay falls as warmup / share, so it needs a warmup above 0")
    return run


def _check_sampling(sampling: Sampling, where: str) -> None:
    _check_schedule(sampling.power, f"{where}: sampling.power")
    if sampling.once_where and sampling.once_per is None:
        raise InputError(
            f"{where}: sampling.once_where needs sampling.once_per, the column with one row for each value"
        )
    if sampling.until is not None and not sampling.until.where:
        raise InputError(f"{where}: sampling.until needs a where: {{column: value}} of the rows that leave")


def _check_schedule(steps: list[tuple[int, float]], where: str) -> None:
    epochs = [first for first, _ in steps]
    if epochs[:1] != [0] or epochs != sorted(set(epochs)) or not all(math.isfinite(value) for _, value in steps):
        raise InputError(
            f"{where}: found {[list(step) for step in steps]}; expected [epoch, power] from epoch 0 upwards"
        )


# Each is (test, what must be); NaN passes none of them.
_POSITIVE = (lambda number: 0 < number < math.inf, "above 0")
_NATURAL = (lambda number: 0 <= number < math.inf, "0 or more")
_SHARE = (lambda number: 0 <= number <= 1, "from 0 to 1")
_DECAY = (lambda number: 0 <= number < 1, "from 0 to below 1")
_LIMITS = {
    **dict.fromkeys(("seed", "folds.seed"), (lambda number: 0 <= number < 2**32, "from 0 to 2**32 - 1")),
    **dict.fromkeys(("data.batch_seconds", "data.batch_frames", "data.max_seconds", "data.max_items"), _POSITIVE),
    **dict.fromkeys(("data.prefetch", "data.quadratic", "data.batch_units"), _POSITIVE),
    **dict.fromkeys(("train.epochs", "train.accumulate", "train.validate_every", "train.save_every"), _POSITIVE),
    **dict.fromkeys(("train.devices", "train.threads", "train.patience", "optim.lr"), _POSITIVE),
    **dict.fromkeys(("data.workers", "train.clip", "optim.min_lr", "optim.weight_decay"), _NATURAL),
    **dict.fromkeys(("optim.warmup", "optim.hold"), _SHARE),
    **dict.fromkeys(("train.ema", "train.swa", "optim.betas"), _DECAY),
    **dict.fromkeys(("sampling.items", "sampling.until.epoch", "train.awp.size", "teacher.temperature"), _POSITIVE),
    **dict.fromkeys(("train.awp.from_epoch",), _NATURAL),
    "folds.parallel": _POSITIVE,
    **dict.fromkeys(("teacher.weight",), _SHARE),
    **dict.fromkeys(("hmm.states", "hmm.beam"), _POSITIVE),
    "hmm.prior_scale": _NATURAL,
}


def _fill(cls: type, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise InputError(
            f"{where}: found {plain!r}; expected keys {', '.join(f.name for f in dataclasses.fields(cls))}"
        )
    hints = typing.get_type_hints(cls)
    for key in plain:
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}; {nearest(key, hints)}")
    values = {}
    for item in dataclasses.fields(cls):
        place = f"{where}: {item.name}" if ":" not in where else f"{where}.{item.name}"
        if item.name in plain:
            values[item.name] = _value(plain[item.name], hints[item.name], place)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise InputError(f"{place} is missing")
    return cls(**values)


def _value(value: Any, annotation: Any, where: str) -> Any:
    for choice in (annotation, *typing.get_args(annotation)):
        if dataclasses.is_dataclass(choice) and value is not None:
            return _fill(choice, value, where)
    return check_type(value, annotation, where)


def _check_named(kind: str, given: Part | list[Part], where: str) -> None:
    parts = given if isinstance(given, list) else [given]
    if kind == "head" and given and all(isinstance(inner, dict) for inner in given.values()):
        parts = given.values()  # several, by names of their own
    for part in parts:
        try:
            named(kind, part)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _refuse_interpolation(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_interpolation(item, f"{where}: {key}" if ":" not in where else f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_interpolation(item, f"{where}[{index}]")
    elif isinstance(value, str) and "${" in value:
        raise InputError(f"{where}: found {value!r}; a config holds plain values, no ${{...}}")
