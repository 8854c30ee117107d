"""What the archive's data sets need beside the library's transforms: turning tracks in the plane of an image."""

import numpy as np

from seqformer import on_values, register


@register("augment", "turn")
def turn(pairs: list[tuple[int, int]], degrees: float = 180.0, p: float = 1.0):
    """Turn the channels of each pair (x, y) about the origin by one angle up to ``degrees``, either way."""
    if not pairs:
        raise ValueError("pairs is empty; expected the channels of some x, y")

    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if max(map(max, pairs)) >= x.shape[-1]:
            raise ValueError(f"turn: pairs {[list(pair) for pair in pairs]}, but x has {x.shape[-1]} channels")
        angle, x = np.deg2rad(rng.uniform(-degrees, degrees)), x.copy()
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=x.dtype)
        for pair in pairs:
            x[:, list(pair)] = x[:, list(pair)] @ matrix
        return x

    return on_values(change, p)
