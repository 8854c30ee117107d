"""Mixes: one example made of two rows of the training set, labels and all.

A registered mix is a function of its settings that returns ``mix(first, second, rng) -> example``; ``by`` (of the
config's entry, as ``p``) takes the second row from those with the first one's value in that column, such as one signer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from seqformer.batch import NO_VALUE, Example, take_frames
from seqformer.registry import create, register

Mix = Callable[[Example, Example, np.random.Generator], Example]


class Mixer:
    """The mixes of a config's ``mix`` list over the rows of one training set.

    ``columns`` are its columns that ``by`` names, ``classes`` {target: number of classes} of the class targets: a mix
    that ``softens`` turns these into shares (classes,) in every example, so that all of a batch have one shape.
    """

    def __init__(self, parts: list[dict[str, Any]], columns: Mapping[str, list], classes: Mapping[str, int]):
        self.entries, rows = [], len(next(iter(columns.values()), []))
        for part in parts:
            given = {key: value for key, value in part.items() if key not in ("name", "p", "by")}
            p, by = part.get("p", 1.0), part.get("by")
            if not 0 <= p <= 1:
                raise ValueError(f"mix {part['name']!r}: p is {p}; expected a probability, 0 to 1")
            groups: dict[Any, np.ndarray] = {}
            for row, value in enumerate(columns[by] if by else []):
                groups.setdefault(value, []).append(row)
            members = [np.asarray(groups[value]) for value in columns[by]] if by else [np.arange(rows)] * rows
            self.entries.append((create("mix", part["name"], **given), p, members))
        softens = any(getattr(mix, "softens", False) for mix, _, _ in self.entries)
        self.classes = dict(classes) if softens else {}

    def __call__(self, read: Callable[[int], Example], index: int, rng: np.random.Generator) -> Example:
        example = self._soften(read(index))
        for mix, p, members in self.entries:
            if rng.random() < p:
                partner = int(rng.choice(members[index]))
                example = mix(example, self._soften(read(partner)), rng)
        return example

    def _soften(self, example: Example) -> Example:
        """Class numbers () or (T,) as shares (classes,) or (T, classes); one that is not scored as missing values."""
        targets = dict(example.targets)
        for name, count in self.classes.items():
            numbers = np.asarray(targets[name])
            shares = np.eye(count, dtype=np.float32)[numbers.clip(0)]
            targets[name] = np.where((numbers < 0)[..., None], np.float32(NO_VALUE), shares)
        return replace(example, targets=targets)


@register("mix")
def mixup(alpha: float = 0.4) -> Mix:
    """Weighted mean of two examples, the share from Beta(alpha, alpha) (Zhang et al. 2018).

    The second is stretched to the first one's frames. Inputs and targets of numbers are averaged, classes as shares.
    Raises ValueError where a target is a text.
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; expected a number above 0")

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        share = np.float32(rng.beta(alpha, alpha))
        second = take_frames(second, np.linspace(0, second.frames - 1, first.frames))
        inputs, targets = {}, {}
        for name, x in first.inputs.items():
            if np.asarray(x).dtype.kind != "f":
                raise ValueError(f"mixup cannot average the input {name!r}: it holds whole numbers")
            inputs[name] = share * x + (1 - share) * second.inputs[name]
        for name, value in first.targets.items():
            if "U" in first.axes.get(name, "T") or np.asarray(value).dtype.kind != "f":
                raise ValueError(f"mixup cannot average {name!r}: a text, or classes of frames")
            targets[name] = share * value + (1 - share) * second.targets[name]
        weight = float(share * first.weight + (1 - share) * second.weight)
        return replace(first, inputs=inputs, targets=targets, weight=weight)

    mix.softens = True
    return mix


@register("mix")
def cutmix(low: float = 0.0, high: float = 1.0) -> Mix:
    """The beginning of one example and the end of another, cut at one ratio drawn from ``low`` to ``high``.

    Frames, per-frame targets and texts are cut at that ratio, class targets and values share by it (Yun et al. 2019;
    for texts as the winner of ASL fingerspelling did).
    """

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        ratio = rng.uniform(low, high)
        start, rest = round(ratio * first.frames), second.frames - round(ratio * second.frames)
        if not start + rest:
            return first
        return _join(first, second, start, rest, ratio)

    mix.softens = True
    return mix


@register("mix")
def concatenate(max_frames: int | None = None) -> Mix:
    """One example after the other, texts too; left as it is where both have more than ``max_frames``."""

    def mix(first: Example, second: Example, rng: np.random.Generator) -> Example:
        if max_frames is not None and first.frames + second.frames > max_frames:
            return first
        return _join(first, second, first.frames, second.frames, None)

    return mix


def _join(first: Example, second: Example, start: int, rest: int, ratio: float | None) -> Example:
    """``start`` frames of the first, then the last ``rest`` of the second; ``ratio`` None takes all of both."""
    one, two = take_frames(first, np.arange(start)), take_frames(second, np.arange(second.frames - rest, second.frames))
    inputs = {name: _joined(name, one.axes.get(name, "T"), x, two.inputs[name]) for name, x in one.inputs.items()}
    targets = {}
    for name, value in one.targets.items():
        axes, head, tail = one.axes.get(name, "T"), np.asarray(value), np.asarray(two.targets[name])
        if axes == "U" and ratio is not None:
            head, tail = head[: round(ratio * len(head))], tail[round(ratio * len(tail)) :]
        if axes in ("U", "T") or ("T" in axes and head.ndim):
            targets[name] = _joined(name, axes, head, tail)
        elif ratio is None or head.dtype.kind != "f":
            raise ValueError(f"{name!r} belongs to a whole example and cannot be joined; use mixup or cutmix")
        else:
            targets[name] = np.float32(ratio) * head + np.float32(1 - ratio) * tail
    return replace(one, inputs=inputs, targets=targets, frames=start + rest)


def _joined(name: str, axes: str, head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Along every ragged axis: a vector of frames after another, a matrix of pairs as two blocks."""
    ragged = [axis for axis, kind in enumerate(axes[: head.ndim]) if kind in "TU"]
    if not ragged:
        return head
    if len(ragged) == 1:
        return np.concatenate([head, tail], axis=ragged[0])
    shape = [a + b if axis in ragged else a for axis, (a, b) in enumerate(zip(head.shape, tail.shape, strict=True))]
    joined = np.zeros(shape, head.dtype)
    joined[tuple(slice(size) for size in head.shape)] = head
    joined[tuple(slice(size if axis in ragged else 0, None) for axis, size in enumerate(head.shape))] = tail
    return joined


def names_of(parts: list[dict[str, Any]]) -> Iterator[str]:
    """The columns that ``by`` of some mixes names."""
    yield from dict.fromkeys(part["by"] for part in parts if part.get("by"))
