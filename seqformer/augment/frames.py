"""Transforms of time, for x (T, ...) of any trailing axes: which frames are taken, which are hidden.

Those that take frames move every input and target with a time axis alike, pairs along both. A text (an axis "U") stays
whole, except that ``reverse`` reverses it too: so keep crops and shifts of examples with a text small.
"""

from dataclasses import replace

import numpy as np

from seqformer.augment.compose import Blank, Rng, blanked, interval, on_example, on_time, on_values
from seqformer.batch import Example, take_frames
from seqformer.registry import register


@register("augment", "resample")
def resample(low: float = 0.5, high: float = 1.5, p: float = 1.0):
    """Stretch the frames by a uniformly drawn factor. (T, ...) -> (round(T * factor), ...), at least one frame."""
    interval(low, high)

    def positions(frames: int, rng: Rng) -> np.ndarray:
        return np.linspace(0, frames - 1, max(1, round(frames * rng.uniform(low, high))))

    return on_time(positions, p)


@register("augment", "window_resample")
def window_resample(
    low: float = 0.5, high: float = 1.5, window_low: float = 0.2, window_high: float = 0.5, p: float = 1.0
):
    """Stretch one window, of a drawn share of the frames, by a uniformly drawn factor."""
    interval(low, high)
    interval(window_low, window_high, 0, 1)

    def positions(frames: int, rng: Rng) -> np.ndarray:
        start, stop = _window(frames, rng.uniform(window_low, window_high), rng)
        inside = np.linspace(start, stop - 1, max(1, round((stop - start) * rng.uniform(low, high))))
        return np.concatenate([np.arange(start), inside, np.arange(stop, frames)])

    return on_time(positions, p)


@register("augment", "time_warp")
def time_warp(knots: int = 4, strength: float = 0.2, p: float = 1.0):
    """Go faster here and slower there: as many frames, the first and the last where they were (Um et al. 2017).

    The logarithm of the pace is a smooth curve through ``knots`` draws of deviation ``strength``, so time never stops.
    """
    _smooth(knots)

    def positions(frames: int, rng: Rng) -> np.ndarray:
        pace = np.exp(strength * curves(frames, knots, 1, rng)[1:, 0])
        passed = np.concatenate([[0], np.cumsum(pace)])
        return passed * ((frames - 1) / max(passed[-1], 1e-9))

    return on_time(positions, p)


@register("augment", "shift")
def shift(frames: int = 10, p: float = 1.0):
    """Begin up to so many frames later or earlier: the start is cut, or the first frame repeated. The end stays."""
    if frames < 0:
        raise ValueError(f"frames is {frames}; expected 0 or more")

    def positions(count: int, rng: Rng) -> np.ndarray:
        return np.arange(min(rng.integers(-frames, frames + 1), count - 1), count).clip(0)

    return on_time(positions, p)


@register("augment", "crop")
def crop(low: float = 0.5, high: float = 1.0, p: float = 1.0):
    """Keep a random window of a uniformly drawn share of the frames, at least one frame."""
    interval(low, high, 0, 1)
    return on_time(lambda frames, rng: np.arange(*_window(frames, rng.uniform(low, high), rng)), p)


@register("augment", "crop_frames")
def crop_frames(frames: int, p: float = 1.0):
    """Keep a random window of ``frames`` frames where there are more."""
    if frames < 1:
        raise ValueError(f"frames is {frames}; expected 1 or more")

    def positions(count: int, rng: Rng) -> np.ndarray:
        start = rng.integers(max(count - frames, 0) + 1)
        return np.arange(start, min(start + frames, count))

    return on_time(positions, p)


@register("augment", "frame_drop")
def frame_drop(share: float = 0.1, p: float = 1.0):
    """Take each frame out with probability ``share``; one always stays."""
    interval(share, share, 0, 1)

    def positions(frames: int, rng: Rng) -> np.ndarray:
        kept = rng.random(frames) >= share
        kept[rng.integers(frames)] |= not kept.any()
        return np.flatnonzero(kept)

    return on_time(positions, p)


@register("augment", "reverse")
def reverse(p: float = 0.5):
    """Play backwards. Texts are reversed as well: what was signed last is now first."""

    def change(example: Example, rng: Rng) -> Example:
        example = take_frames(example, np.arange(example.frames)[::-1])
        inputs, targets = (
            {name: _reversed_text(array, example.axes.get(name, "T")) for name, array in fields.items()}
            for fields in (example.inputs, example.targets)
        )
        return replace(example, inputs=inputs, targets=targets)

    return on_example(change, p)


@register("augment", "time_mask")
def time_mask(count: int = 1, low: float = 0.2, high: float = 0.4, value: Blank = "zero", p: float = 1.0):
    """Hide ``count`` windows of a drawn share of the frames each; they may overlap.

    ``value`` is what is put there: 0, ``nan`` (missing) or the ``mean`` over the frames.
    """
    interval(low, high, 0, 1)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        hidden = np.zeros(len(x), dtype=bool)
        for _ in range(count):
            width = round(len(x) * rng.uniform(low, high))
            start = rng.integers(len(x) - width + 1)
            hidden[start : start + width] = True
        return blanked(x, hidden.reshape(-1, *[1] * (x.ndim - 1)), value)

    return on_values(change, p)


@register("augment", "magnitude_warp")
def magnitude_warp(knots: int = 4, strength: float = 0.2, p: float = 1.0):
    """Multiply each channel (last axis) by a smooth curve over time around 1, of deviation ``strength`` at its knots.

    Um et al. 2017.
    """
    _smooth(knots)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        curve = 1 + strength * curves(len(x), knots, x.shape[-1] if x.ndim > 1 else 1, rng)
        return x * curve.reshape(len(x), *[1] * (x.ndim - 2), *x.shape[1:][-1:])

    return on_values(change, p)


def curves(frames: int, knots: int, count: int, rng: Rng) -> np.ndarray:
    """Smooth curves (frames, count) over time: cubic splines through standard normal draws, evenly spaced."""
    from scipy.interpolate import CubicSpline

    return CubicSpline(np.linspace(0, 1, knots), rng.standard_normal((knots, count)))(np.linspace(0, 1, frames))


def _smooth(knots: int) -> None:
    if knots < 2:
        raise ValueError(f"knots is {knots}; a curve needs 2 or more")


def _window(frames: int, share: float, rng: Rng) -> tuple[int, int]:
    """Start and end of a random window of a share of the frames, at least one."""
    width = max(1, round(frames * share))
    start = int(rng.integers(frames - width + 1))
    return start, start + width


def _reversed_text(array: np.ndarray, axes: str) -> np.ndarray:
    array = np.asarray(array)
    return np.flip(array, [axis for axis, kind in enumerate(axes[: array.ndim]) if kind == "U"])
