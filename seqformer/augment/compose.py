"""Per-example transforms, composed by albumentations and reseeded for every example.

A transform is a registered class with ``apply(x, **params)`` that draws only from albumentations' own generators,
``self.py_random`` and ``self.random_generator``, so that one seed decides all of it.
"""

import functools
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from seqformer.errors import InputError
from seqformer.registry import create

# albumentations asks the network for a newer version of itself at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@functools.cache
def frame_transform() -> type:
    """The class our transforms stand on: an albumentations transform of ``x`` (T, ...), made on first use.

    albumentations takes two seconds to import, so a run without augmentation never does.
    """
    from albumentations.core.transforms_interface import BasicTransform

    class FrameTransform(BasicTransform):
        _targets = ()

        @property
        def targets(self) -> dict[str, Callable]:
            return {"x": self.apply}

        def update_transform_params(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            return params  # the original looks for the shape of an image

    return FrameTransform


class Augment:
    """``augment(x, seed) -> x``: the transforms of a config's ``augment`` list, in order; the seed decides it all."""

    def __init__(self, parts: list[dict[str, Any]]):
        from albumentations import Compose

        self.parts = parts
        for part in parts:
            if not 0 <= part.get("p", 1) <= 1:
                raise InputError(f"augment {part['name']!r}: p is {part['p']}; expected a probability, 0 to 1")
        transforms = [
            create("augment", part["name"], **{k: v for k, v in part.items() if k != "name"}) for part in parts
        ]
        self.compose = Compose(transforms, strict=False)

    def __reduce__(self):
        return Augment, (self.parts,)  # the transforms' classes are made on first use, in a spawned worker too

    def __call__(self, x: np.ndarray, seed: int) -> np.ndarray:
        # One stream for all: set_random_seed would start each transform at the same draw, so that, say, noise came
        # with the low gains only.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.compose(x=x)["x"]
