"""Mixes: one example made of two rows of the training set, labels and all.

A registered mix is a function of its settings that returns ``mix(first, second, rng) -> example``; ``by`` (of the
config's entry, as ``p``) takes the second row from those with the first one's value in that column, such as one signer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seqformer.augment.compose import interval
from seqformer.batch import NO_CLASS, NO_VALUE, Example, take_frames
from seqformer.errors import InputError
from seqformer.registry import check_type, create, named, register

Mix = Callable[[Example, Example, np.random.Generator], Example]


class Mixer:
    """The mixes of a config's ``mix`` list over the rows of one training set.

    ``columns`` are its columns that ``by`` names, ``classes`` {target: number of classes} of the class targets: a mix
    that ``softens`` turns these into shares (classes,) in every example, so that all of a batch have one shape. A row
    without a value in the column of ``by`` is mixed with none but itself. Raises InputError on useless settings.
    """

    def __init__(self, parts: list[dict[str, Any]], columns: Mapping[str, Sequence], classes: Mapping[str, int]):
        self.made_of = parts, columns, classes
        self.entries, rows = [], len(next(iter(columns.values()), []))
        for part in parts:
            name = named("mix", part)["name"]
            p = check_type(part.get("p", 1.0), float, f"mix {name!r}.p")
            if not 0 <= p <= 1:
                raise InputError(f"mix {name!r}: p is {p}; expected a probability, 0 to 1")
            given = {key: value for key, value in part.items() if key not in ("name", "p", "by")}
            by = part.get("by")
            members = Partners(columns[by] if by else [0] * rows)
            self.entries.append((create("mix", name, **given), p, members))
        softens = any(getattr(mix, "softens", False) for mix, _, _ in self.entries)
        self.classes = dict(classes) if softens else {}

    def __reduce__(self):
        return Mixer, self.made_of  # a mix is a function inside a function, made again in a spawned worker

    def __call__(self, read: Callable[[int], Example], index: int, rng: np.random.Generator) -> Example:
        example = self._soften(read(index))
        for mix, p, members in self.entries:
            if rng.random() < p:
                partner = int(rng.choice(members[index]))
                example = _mixed(mix, example, self._soften(read(partner)), rng)
        return example

    def _soften(self, example: Example) -> Example:
        """Class numbers () or (T,) as shares (classes,) or (T, classes); one that is not scored as missing values."""
        targets = dict(example.targets)
        for name, count in self.classes.items():
            numbers = np.asarray(targets[name])
            shares = np.eye(count, dtype=np.float32)[numbers.clip(0)]
            targets[name] = np.where((numbers < 0)[..., None], np.float32(NO_VALUE), shares)
        return replace(example, targets=targets)


class Partners:
    """``partners[row]`` are the rows with the same value, itself among them; a row without a value is alone."""

    def __init__(self, values: Sequence):
        numbers: dict[Any, int] = {}
        named = (("row", row) if value is None else ("value", value) for row, value in enumerate(values))
        self.groups = np.array([numbers.setdefault(name, len(numbers)) for name in named], dtype=np.int64)
        self.rows = np.argsort(self.groups, kind="stable")
        self.starts = np.searchsorted(self.groups[self.rows], np.arange(len(numbers) + 1))

    def __getitem__(self, row: int) -> np.ndarray:
        group = self.groups[row]
        return self.rows[self.starts[group] : self.starts[group + 1]]


def _mixed(mix: Mix, first: Example, second: Example, rng: np.random.Generator) -> Example:
    """The mix of two examples that both have frames; the first where one has none. Errors name both rows."""
    if not first.frames or not second.frames:
        return first
    try:
        return mix(_filled(first), _filled(second), rng)
    except InputError as error:
        raise InputError(f"rows {first.id} and {second.id} cannot be mixed: {error}") from error


def _filled(example: Example) -> Example:
    """Targets without any frame (nothing is scored) get all frames, not scored, to be put beside those of another."""

    def filled(value: np.ndarray, axes: str) -> np.ndarray:
        pairs = list(zip(axes.ljust(value.ndim), value.shape, strict=False))
        if ("T", 0) not in pairs:
            return value
        shape = [example.frames if kind == "T" else size for kind, size in pairs]
        return np.full(shape, _not_scored(value), value.dtype)

    targets = {name: filled(np.asarray(value), example.axes.get(name, "T")) for name, value in example.targets.items()}
    return replace(example, targets=targets)


def _not_scored(value: np.ndarray) -> float:
    return NO_VALUE if value.dtype.kind == "f" else NO_CLASS


@register("mix")
def mixup(alpha: float = 0.4) -> Mix:
    """Weighted mean of two examples, the share from Beta(alpha, alpha) (Zhang et al. 2018).

    The second is stretched to the first one's frames. Inputs, targets of numbers and weights are averaged, classes as
    shares; what is missing or not scored in one of the two is so in the mix. Whole numbers must be those of the whole
    example, and the same in both (see ``by``): tokens and texts have no mean.
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; expected a number above 0")

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        share = rng.beta(alpha, alpha)
        second = take_frames(second, np.linspace(0, second.frames - 1, first.frames))

        def averaged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, np.ndarray]:
            mixed = {}
            for name, value in ours.items():
                if "U" in first.axes.get(name, "T"):
                    raise InputError(f"mixup cannot average {name!r}, a text; use cutmix or concatenate")
                mixed[name] = _mean(name, np.asarray(value), np.asarray(theirs[name]), share)
            return mixed

        weight = share * first.weight + (1 - share) * second.weight
        inputs, targets = averaged(first.inputs, second.inputs), averaged(first.targets, second.targets)
        return replace(first, inputs=inputs, targets=targets, weight=float(weight))

    mix.softens = True
    return mix


@register("mix")
def cutmix(low: float = 0.0, high: float = 1.0) -> Mix:
    """The beginning of one example and the end of another, cut at one ratio drawn from ``low`` to ``high``.

    Frames, per-frame targets and texts are cut at that ratio; numbers of the whole example, class targets and weights
    are averaged by it (Yun et al. 2019; for texts as the winner of ASL fingerspelling did). In pairs of frames, those
    of one and the other are 0 as an input and not scored as a target.
    """
    interval(low, high, 0, 1)

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        ratio = rng.uniform(low, high)
        if not round(ratio * first.frames) + second.frames - round(ratio * second.frames):
            return first
        return _join(first, second, ratio)

    mix.softens = True
    return mix


@register("mix")
def concatenate(max_frames: int | None = None) -> Mix:
    """One example after the other, texts too; the first alone where together they have more than ``max_frames``.

    What belongs to the whole example must be the same in both (see ``by``), but for the weight: its mean over frames.
    """

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        if max_frames is not None and first.frames + second.frames > max_frames:
            return first
        return _join(first, second, None)

    return mix


def _join(first: Example, second: Example, ratio: float | None) -> Example:
    """The first up to ``ratio`` and the second from there on, in every ragged axis; None takes all of both."""

    def sizes(one: int, two: int) -> tuple[int, int]:
        return (one, 0) if ratio is None else (round(ratio * one), round(ratio * two))

    def joined(ours: Mapping[str, Any], theirs: Mapping[str, Any], target: bool) -> dict[str, np.ndarray]:
        fields = {}
        for name, value in ours.items():
            head, tail = np.asarray(value), np.asarray(theirs[name])
            ragged = [axis for axis, kind in enumerate(first.axes.get(name, "T")[: head.ndim]) if kind in "TU"]
            if not ragged:
                fields[name] = _mean(name, head, tail, ratio)
                continue
            for axis in ragged:
                stop, start = sizes(head.shape[axis], tail.shape[axis])
                head, tail = head.take(range(stop), axis), tail.take(range(start, tail.shape[axis]), axis)
            fields[name] = _blocks(head, tail, ragged, _not_scored(head) if target else 0)
        return fields

    stop, start = sizes(first.frames, second.frames)
    frames = stop + second.frames - start
    share = stop / frames if ratio is None else ratio
    return replace(
        first,
        inputs=joined(first.inputs, second.inputs, target=False),
        targets=joined(first.targets, second.targets, target=True),
        frames=frames,
        weight=float(share * first.weight + (1 - share) * second.weight),
    )


def _mean(name: str, one: np.ndarray, two: np.ndarray, share: float | None) -> np.ndarray:
    """Weighted mean. What has none, whole numbers or no ``share``, is kept where it is the same in both."""
    if share is not None and one.dtype.kind == two.dtype.kind == "f":
        return np.float32(share) * one + np.float32(1 - share) * two
    if not np.array_equal(one, two, equal_nan=True):
        raise InputError(f"{name!r} differs and has no mean; mix by a column that tells such rows apart")
    return one


def _blocks(head: np.ndarray, tail: np.ndarray, ragged: list[int], fill: float) -> np.ndarray:
    """A vector of frames after another; a matrix of pairs as two blocks, ``fill`` around them."""
    if len(ragged) == 1:
        return np.concatenate([head, tail], axis=ragged[0])
    shape = [a + b if axis in ragged else a for axis, (a, b) in enumerate(zip(head.shape, tail.shape, strict=True))]
    joined = np.full(shape, fill, np.result_type(head, tail))
    joined[tuple(slice(size) for size in head.shape)] = head
    joined[tuple(slice(size if axis in ragged else 0, None) for axis, size in enumerate(head.shape))] = tail
    return joined


def names_of(parts: list[dict[str, Any]]) -> Iterator[str]:
    """The columns that ``by`` of some mixes names."""
    yield from dict.fromkeys(part["by"] for part in parts if part.get("by"))
