"""Transforms of single examples, composed by albumentations and reseeded for every example.

A registered transform is a function of its settings and ``p`` that returns one of three kinds:
``on_values``: new values of the input ``x``; ``on_time``: the frames to take, which moves every input and target that
has a time axis alike; ``on_example``: anything. Each draws only from the numpy generator it is handed, so that one seed
decides all of it. An example without frames stays as it is.
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np

from seqformer.batch import Example, take_frames
from seqformer.errors import InputError
from seqformer.registry import create, lookup, named, parameter_types, register

# albumentations asks the network for a newer version of itself at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Rng = np.random.Generator
Blank = Literal["zero", "nan", "mean"]


def on_example(change: Callable[[Example, Rng], Example], p: float):
    """An albumentations transform that applies ``change`` with probability ``p``."""
    return _transform_class()(change, _probability(p))


def on_values(change: Callable[[np.ndarray, Rng], np.ndarray], p: float):
    """A transform of the values of ``x`` (T, ...), whose frames may grow or shrink where nothing else has frames.

    ``change`` is handed a float32 copy, to write into or not; the row of a store is never written to.
    """

    def apply(example: Example, rng: Rng) -> Example:
        x = np.asarray(example.inputs["x"])
        if x.dtype.kind != "f":
            raise InputError(f"row {example.id}: x holds {x.dtype}; only frames can be moved, values need floats")
        try:
            x = change(x.astype(np.float32), rng).astype(np.float32, copy=False)
        except InputError as error:
            raise InputError(f"row {example.id}: {error}") from error
        return replace(example, inputs={**example.inputs, "x": x}, frames=len(x))

    return on_example(apply, p)


def on_time(positions: Callable[[int, Rng], np.ndarray], p: float):
    """A transform of time: ``positions(frames, rng)`` are the frames (T',) to take, fractions being between two."""
    return on_example(lambda example, rng: take_frames(example, positions(example.frames, rng)), p)


def blanked(x: np.ndarray, where: np.ndarray, value: Blank) -> np.ndarray:
    """x (T, ...) with a value everywhere that ``where`` (broadcast to x) is true.

    0, NaN (missing), or the mean over the frames of what is there, of each place of the trailing axes.
    """
    if value == "mean":
        there = ~np.isnan(x)
        mean = np.where(there, x, 0).sum(axis=0, dtype=np.float64) / there.sum(axis=0).clip(1)
        return np.where(where, mean.astype(x.dtype), x)
    return np.where(where, x.dtype.type(0 if value == "zero" else np.nan), x)


def interval(low: float, high: float, least: float = 0.0, most: float = np.inf) -> None:
    """Raise ValueError unless least <= low <= high <= most."""
    if not least <= low <= high <= most:
        raise ValueError(f"from {low} to {high}: expected two numbers in order, {least} to {most}")


@cache
def _transform_class() -> type:
    """Made on first use: albumentations takes two seconds to import, and a run without augmentation never does."""
    from albumentations.core.transforms_interface import BasicTransform

    class Transform(BasicTransform):
        _targets = ()

        def __init__(self, change: Callable[[Example, Rng], Example], p: float):
            super().__init__(p=p)
            self.change = change

        @property
        def targets(self) -> dict[str, Callable]:
            return {"example": self.apply}

        def apply(self, example: Example, **params) -> Example:
            return self.change(example, self.random_generator) if example.frames else example

        def update_transform_params(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            return params  # the original looks for the shape of an image

    return Transform


class Augment:
    """``augment(example, seed) -> example``: the transforms of a config's ``augment`` list, in order.

    ``rate`` is that of the examples in Hz, for the transforms that ask for one and whose part gives none.
    """

    def __init__(self, parts: list[dict[str, Any]], rate: int | None = None):
        from albumentations import Compose

        self.parts, self.rate = parts, rate
        self.compose = Compose([_build(part, rate) for part in parts], strict=False)

    def __reduce__(self):
        return Augment, (self.parts, self.rate)  # the transforms' class is made on first use, in a spawned worker too

    def __call__(self, example: Example, seed: int) -> Example:
        # One stream for all: set_random_seed would start each transform at the same draw, so that, say, noise came
        # with the low gains only.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.compose(example=example)["example"]


@register("augment")
def one_of(transforms: list[dict], p: float = 1.0, rate: int | None = None):
    """One of several transforms, each as likely as its own ``p`` says."""
    from albumentations import OneOf

    return OneOf([_build(part, rate) for part in transforms], p=_probability(p))


def _build(part: dict[str, Any], rate: int | None):
    part = named("augment", part)
    known = {"rate": rate} if rate and "rate" in parameter_types(lookup("augment", part["name"])) else {}
    return create("augment", part["name"], **known | {key: value for key, value in part.items() if key != "name"})


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; expected a probability, 0 to 1")
    return p
