"""Per-example transforms, composed by albumentations and reseeded for every example.

A transform is a registered class with ``apply(x, **params)`` that draws only from albumentations' own generators,
``self.py_random`` and ``self.random_generator``, so that one seed decides all of it.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

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
    """``augment(x, seed) -> x``: the transforms of a config's ``augment`` list, in order."""

    def __init__(self, parts: list[dict[str, Any]]):
        from albumentations import Compose

        transforms = [
            create("augment", part["name"], **{k: v for k, v in part.items() if k != "name"}) for part in parts
        ]
        self.compose = Compose(transforms, strict=False)

    def __call__(self, x: np.ndarray, seed: int) -> np.ndarray:
        self.compose.set_random_seed(seed)
        return self.compose(x=x)["x"]
