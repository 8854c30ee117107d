"""Transforms of the values of sensors and features, x (T, ..., C) or (T,): the last axis is channels. NaN stays NaN."""

import numpy as np

from seqformer.augment.compose import Blank, Rng, blanked, interval, on_values
from seqformer.errors import InputError
from seqformer.registry import register


@register("augment", "jitter")
def jitter(deviation: float = 0.03, relative: bool = False, p: float = 1.0):
    """Add Gaussian noise; ``relative`` counts the deviation in those of each channel over the example."""
    interval(deviation, deviation)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        level = deviation * (_deviation(x) if relative else 1)
        return x + level * rng.standard_normal(x.shape, dtype=np.float32)

    return on_values(change, p)


@register("augment", "scale")
def scale(low: float = 0.9, high: float = 1.1, per_channel: bool = False, p: float = 1.0):
    """Multiply by a uniformly drawn number, or by one for each channel."""
    interval(low, high, -np.inf)
    return on_values(lambda x, rng: x * rng.uniform(low, high, _channels(x) if per_channel else None), p)


@register("augment", "offset")
def offset(low: float = -0.1, high: float = 0.1, per_channel: bool = False, p: float = 1.0):
    """Add a uniformly drawn number, or one for each channel."""
    interval(low, high, -np.inf)
    return on_values(lambda x, rng: x + rng.uniform(low, high, _channels(x) if per_channel else None), p)


@register("augment", "feature_mask")
def feature_mask(count: int = 1, low: float = 0.0, high: float = 0.2, value: Blank = "zero", p: float = 1.0):
    """Hide ``count`` bands of neighbouring channels, of a drawn share of them each, in all frames; they may overlap."""
    interval(low, high, 0, 1)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        hidden = np.zeros(_channels(x), dtype=bool)
        for _ in range(count):
            width = round(len(hidden) * rng.uniform(low, high))
            start = rng.integers(len(hidden) - width + 1)
            hidden[start : start + width] = True
        return blanked(x, hidden, value)

    return on_values(change, p)


@register("augment", "channel_drop")
def channel_drop(p_each: float = 0.1, groups: list[list[int]] | None = None, value: Blank = "zero", p: float = 1.0):
    """Hide each group of channels with probability ``p_each`` in all frames; one group always stays.

    ``groups`` are the channels of, say, each sensor; without any, every channel is a group. A channel in no group is
    never hidden.
    """
    interval(p_each, p_each, 0, 1)
    if groups is not None and not groups:
        raise ValueError("groups is empty; leave it out for a group per channel")

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        members = np.arange(_channels(x))[:, None] if groups is None else groups
        drawn = rng.random(len(members)) < p_each
        drawn[rng.integers(len(members))] &= not drawn.all()
        hidden = np.zeros(_channels(x), dtype=bool)
        for group in (group for group, hide in zip(members, drawn, strict=True) if hide):
            hidden[_known(group, x)] = True
        return blanked(x, hidden, value)

    return on_values(change, p)


@register("augment", "rotate")
def rotate(triples: list[tuple[int, int, int]], degrees: float = 180.0, p: float = 1.0):
    """Rotate the channels of each triple (x, y, z) by one rotation: another way to wear the sensor.

    About an axis of any direction, by an angle up to ``degrees``. A triple with a missing value is missing.
    """
    if not triples:
        raise ValueError("triples is empty; expected the channels of some x, y, z")

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        matrix = rotation(rng.standard_normal(3), rng.uniform(-degrees, degrees))
        for triple in triples:
            channels = _known(triple, x)
            x[..., channels] = x[..., channels] @ matrix.T
        return x

    return on_values(change, p)


@register("augment", "swap_channels")
def swap_channels(permutation: list[int], signs: list[float] | None = None, p: float = 0.5):
    """Channel i becomes what channel ``permutation[i]`` was, times ``signs[i]``: left for right, a mirrored sensor."""
    if sorted(permutation) != list(range(len(permutation))):
        raise ValueError(f"permutation {permutation}: expected every channel from 0 to {len(permutation) - 1} once")
    if signs is not None and len(signs) != len(permutation):
        raise ValueError(f"{len(signs)} signs for {len(permutation)} channels")
    factors = np.asarray(signs or [1.0] * len(permutation), dtype=np.float32)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        if _channels(x) != len(permutation):
            raise InputError(f"swap_channels: a permutation of {len(permutation)} channels, but x has {_channels(x)}")
        return x[..., permutation] * factors

    return on_values(change, p)


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """The matrix (3, 3) of a rotation about an axis (3,) (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _channels(x: np.ndarray) -> int:
    return x.shape[-1] if x.ndim > 1 else 1


def _deviation(x: np.ndarray) -> np.ndarray:
    """Standard deviation of each channel over all but the last axis, of what is not missing."""
    values = x.reshape(-1, _channels(x))
    there = ~np.isnan(values)
    count = there.sum(axis=0).clip(1)
    centred = values - np.where(there, values, 0).sum(axis=0) / count
    return np.sqrt(np.square(centred, where=there, out=np.zeros_like(centred)).sum(axis=0) / count)


def _known(channels: list[int], x: np.ndarray) -> list[int]:
    """The channels, if x has them all."""
    for channel in channels:
        if not 0 <= channel < _channels(x):
            raise InputError(f"channel {channel} is wanted, but x has {_channels(x)} channels, numbered from 0")
    return list(channels)
