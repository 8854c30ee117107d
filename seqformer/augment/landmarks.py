"""Transforms of landmarks, x (T, L, C): L points of C coordinates, x and y first; NaN is a point that was not found.

A part or finger is a list of points, or text "0:21" for the points 0 to 20.
"""

from typing import Literal

import numpy as np

from seqformer.augment.channels import rotation
from seqformer.augment.compose import Blank, Rng, blanked, interval, on_values
from seqformer.errors import InputError
from seqformer.registry import register

Points = str | list[int]


@register("augment", "affine")
def affine(
    scale: tuple[float, float] = (0.7, 1.3),
    shear: float = 0.2,
    shift: float = 0.15,
    rotate_degrees: float = 30.0,
    tilt_degrees: float = 0.0,
    center: tuple[float, float] | None = None,
    dims: Literal[2, 3] = 2,
    p: float = 1.0,
):
    """Scale, shear, rotate and move all frames alike.

    One factor from ``scale``; shear along x or y and a shift of each up to the numbers given, both ways; a rotation in
    the plane up to ``rotate_degrees``. With ``dims`` 3 the factor is z's too, and the rotation is followed by one about
    an axis in the plane, up to ``tilt_degrees``. About ``center``, by default the example's mean. A point of which one
    of these coordinates is missing is missing.
    """
    interval(*scale)
    if tilt_degrees and dims == 2:
        raise ValueError("tilt_degrees needs dims 3")

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        x = _landmarks(x, dims)
        matrix = rng.uniform(*scale) * np.eye(3)
        sheared = np.eye(3)
        sheared[(0, 1) if rng.random() < 0.5 else (1, 0)] = rng.uniform(-shear, shear)
        matrix = rotation(np.array([0, 0, 1]), rng.uniform(-rotate_degrees, rotate_degrees)) @ sheared @ matrix
        if tilt_degrees:
            matrix = rotation(np.append(rng.standard_normal(2), 0), rng.uniform(-tilt_degrees, tilt_degrees)) @ matrix
        middle, moved = _mean(x[..., :dims]), np.zeros(dims)
        moved[:2] = rng.uniform(-shift, shift, 2)
        if center is not None:
            middle[:2] = center
        x[..., :dims] = (x[..., :dims] - middle) @ matrix[:dims, :dims].T + middle + moved
        return x

    return on_values(change, p)


@register("augment", "flip")
def flip(pairs: list[tuple[int, int]], axis: int = 0, center: float | None = None, p: float = 0.5):
    """Mirror: the points of each pair change places, and the coordinate ``axis`` is mirrored at ``center``.

    ``center`` is 0 for centred coordinates, 0.5 for those of an image from 0 to 1, by default the example's mean.
    """
    left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len({*left, *right}) != 2 * len(pairs):
        raise ValueError("pairs name a point twice; each point has one partner, or none")

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        x = _landmarks(x, axis + 1, left + right)
        x[:, left + right] = x[:, right + left]
        middle = _mean(x[..., axis, None]) if center is None else center
        x[..., axis] = 2 * middle - x[..., axis]
        return x

    return on_values(change, p)


@register("augment", "part_drop")
def part_drop(parts: dict[str, Points], low: int = 1, high: int = 1, value: Blank = "nan", p: float = 0.5):
    """Hide ``low`` to ``high`` different parts, such as a hand or the face, in all frames."""
    groups = _groups(list(parts.values()), low, high)
    return on_values(lambda x, rng: blanked(x, _drawn(x, groups, low, high, rng)[:, None], value), p)


@register("augment", "finger_drop")
def finger_drop(
    fingers: list[Points],
    low: int = 2,
    high: int = 6,
    windows_low: int = 2,
    windows_high: int = 3,
    share_low: float = 0.25,
    share_high: float = 0.5,
    value: Blank = "nan",
    p: float = 0.75,
):
    """Hide ``low`` to ``high`` different fingers, the same in some windows of a drawn share of the frames each.

    What the configuration of the winner of ASL fingerspelling says; its code draws 12 fingers, with replacement.
    """
    groups = _groups(fingers, low, high)
    interval(windows_low, windows_high)
    interval(share_low, share_high, 0, 1)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        points, inside = _drawn(x, groups, low, high, rng), np.zeros(len(x), dtype=bool)
        for _ in range(rng.integers(windows_low, windows_high + 1)):
            width = round(len(x) * rng.uniform(share_low, share_high))
            start = rng.integers(len(x) - width + 1)
            inside[start : start + width] = True
        return blanked(x, (inside[:, None] & points)[..., None], value)

    return on_values(change, p)


@register("augment", "space_mask")
def space_mask(low: float = 0.05, high: float = 0.1, value: Blank = "nan", p: float = 0.5):
    """Hide a drawn share of the points, in all frames."""
    interval(low, high, 0, 1)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        count = _landmarks(x, 1).shape[1]
        hidden = rng.permutation(count) < round(count * rng.uniform(low, high))
        return blanked(x, hidden[:, None], value)

    return on_values(change, p)


@register("augment", "cut_out")
def cut_out(low: float = 0.2, high: float = 0.4, value: Blank = "nan", p: float = 0.5):
    """Hide whatever is inside a box, whose sides are drawn shares of the example's extent in x and in y."""
    interval(low, high, 0, 1)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        x, share, place = _landmarks(x, 2), rng.uniform(low, high, 2), rng.random(2)
        flat = x[..., :2].reshape(-1, 2)
        found = flat[~np.isnan(flat).any(axis=1)]
        if not len(found):
            return x
        start, extent = found.min(axis=0), np.ptp(found, axis=0)
        start = start + place * (1 - share) * extent
        inside = (x[..., :2] >= start) & (x[..., :2] <= start + share * extent)
        return blanked(x, inside.all(axis=-1, keepdims=True), value)

    return on_values(change, p)


def _landmarks(x: np.ndarray, dims: int, points: list[int] = ()) -> np.ndarray:
    """x itself, if it has three axes, enough coordinates, and all the points."""
    if x.ndim != 3 or x.shape[2] < dims:
        raise InputError(f"x has shape {x.shape}; expected landmarks (frames, points, {dims} or more coordinates)")
    for point in points:
        if not 0 <= point < x.shape[1]:
            raise InputError(f"point {point} is wanted, but x has {x.shape[1]} points, numbered from 0")
    return x


def _mean(x: np.ndarray) -> np.ndarray:
    """Mean (C,) of what is there over frames and points; 0 where nothing is."""
    there = ~np.isnan(x)
    return np.where(there, x, 0).sum(axis=(0, 1), dtype=np.float64) / there.sum(axis=(0, 1)).clip(1)


def _groups(groups: list[Points], low: int, high: int) -> list[list[int]]:
    """Lists of points. Raises ValueError when there are fewer than ``high``, or one cannot be read."""
    interval(low, high, 0, len(groups))
    return [_points(group) if isinstance(group, str) else group for group in groups]


def _points(text: str) -> list[int]:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ValueError(f"found {text!r}; expected points such as '0:21' or [3, 4]")
    return list(range(int(start), int(stop)))


def _drawn(x: np.ndarray, groups: list[list[int]], low: int, high: int, rng: Rng) -> np.ndarray:
    """Which points (L,) are in ``low`` to ``high`` groups, drawn without replacement."""
    points = np.zeros(_landmarks(x, 1).shape[1], dtype=bool)
    for group in rng.permutation(len(groups))[: rng.integers(low, high + 1)]:
        _landmarks(x, 1, groups[group])
        points[groups[group]] = True
    return points
