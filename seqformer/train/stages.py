"""What a fold takes over from the same fold of an earlier run: the weights to start from, or a teacher.

Fold k may only learn from a fold k that has seen none of the rows it validates (P3); see ``seqformer.data.lineage``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from seqformer.checkpoint import load_weights
from seqformer.config import Run, build_config, read_config
from seqformer.data.folds import folder_of
from seqformer.data.lineage import rows_seen
from seqformer.data.targets import Targets
from seqformer.errors import InputError, first_few, nearest
from seqformer.model import SequenceModel, head_parts
from seqformer.predict import head_target, load_targets


@dataclass(frozen=True)
class EarlierFold:
    """A finished fold of an earlier run, named by ``key`` of the config; ``seen``: the ids it has learned from."""

    key: str
    folder: Path
    config: Run
    seen: frozenset[str]

    @property
    def checkpoint(self) -> Path:
        """The one that its run selected."""
        return self.folder / self.config.train.select


def earlier_folds(config: Run, root: Path, name: str, valid: Iterable[str], started: bool) -> dict[str, EarlierFold]:
    """What fold ``name`` of a run still needs of earlier runs, {``init_from`` or ``teacher``: the fold}.

    A fold that has ``started`` begins from its own checkpoint. ``valid`` are the ids that it validates. Raises
    InputError when a run or its fold is not there, or has learned from any of those rows.
    """
    wanted = {"init_from": None if started else config.init_from, "teacher": config.teacher and config.teacher.run}
    return {key: _open_fold(key, given, root, name, set(valid)) for key, given in wanted.items() if given}


def _open_fold(key: str, given: str, root: Path, name: str, valid: set[str]) -> EarlierFold:
    place = next((folder for folder in (root / given, Path(given)) if (folder / "config.yaml").is_file()), None)
    if place is None:
        runs = [path.parent.name for path in root.glob("*/config.yaml")]
        raise InputError(f"{key}: {given} is no run folder, nor a run in {root}; {nearest(given, runs)}")
    folder = place / folder_of(name)
    if not (folder / "done.json").is_file():
        finished = sorted(path.parent.name for path in place.glob("*/done.json"))
        raise InputError(f"{key}: {place} has no finished {folder.name}; finished: {', '.join(finished) or 'none'}")
    seen = rows_seen(folder)
    leaked = sorted(seen & valid)
    if leaked:
        raise InputError(
            f"{key}: {folder} has learned from {len(leaked)} rows that this fold {name} validates: {first_few(leaked)}"
        )
    config = build_config(read_config(place / "config.yaml"), str(place / "config.yaml"))
    return EarlierFold(key, folder, config, frozenset(seen))


def start_from(model: SequenceModel, targets: Targets, earlier: EarlierFold, skip: list[str]) -> None:
    """Load the weights of an earlier fold, all but those whose names match an fnmatch pattern of ``skip``.

    Raises InputError naming the first weights that only one of the two has or whose shapes differ, a head whose outputs
    mean something else there, or a pattern that matches nothing.
    """
    ours, theirs = model.state_dict(), load_weights(earlier.checkpoint)
    for pattern in skip:
        if not any(fnmatchcase(key, pattern) for key in (*ours, *theirs)):
            raise InputError(f"init_skip: no weight of the model matches {pattern!r}; {nearest(pattern, model.heads)}")
    ours, theirs = (_without(weights, skip) for weights in (ours, theirs))
    faults = [f"{key} (not there)" for key in ours if key not in theirs]
    faults += [f"{key} (only there)" for key in theirs if key not in ours]
    faults += [
        f"{key} {tuple(theirs[key].shape)}, here {tuple(value.shape)}"
        for key, value in ours.items()
        if key in theirs and value.shape != theirs[key].shape
    ]
    if faults:
        raise InputError(
            f"init_from: {earlier.checkpoint} differs from this model in {len(faults)} weights: {first_few(faults)}; "
            "skip them by name in init_skip"
        )
    for head in {key.split(".")[1] for key in ours if key.startswith("heads.")}:
        require_same_outputs(earlier, head, targets.encoders[model.heads[head].target], head)
    model.load_state_dict(theirs, strict=False)


def _without(weights: dict[str, Tensor], skip: list[str]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not any(fnmatchcase(key, pattern) for pattern in skip)}


def require_same_outputs(earlier: EarlierFold, head: str, encoder, ours: str) -> None:
    """Raise InputError unless output n of ``head`` there means what output n of the head ``ours`` means here."""
    column = head_target(head_parts(earlier.config.head)[head])
    if load_targets(earlier.folder).encoders[column].state() != encoder.state():
        remedy = f"; skip its weights: init_skip: ['heads.{ours}.*']" if earlier.key == "init_from" else ""
        raise InputError(
            f"{earlier.key}: outputs of head {head!r} of {earlier.folder} are other classes or units of {column!r} "
            f"than those of {ours!r} here{remedy}"
        )
