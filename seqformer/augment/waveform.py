"""Transforms of raw audio, x (N,) samples in [-1, 1].

What makes audio louder leaves it within [-1, 1], or within what it had before: the whole item is turned down where its
peak would lie above, as a recording's level is set, so that nothing is clipped and no ratio inside it moves.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from seqformer.augment.compose import Rng, interval, on_values
from seqformer.registry import register

if TYPE_CHECKING:
    from fractions import Fraction


def on_samples(change: Callable[[np.ndarray, Rng], np.ndarray], p: float):
    """A transform of the samples of ``x`` (N,) that keeps the peak within 1, or within that of ``x`` where it is more.

    Where the samples are not finite nothing is turned down: they reach the loss, which names the row.
    """

    def bounded(x: np.ndarray, rng: Rng) -> np.ndarray:
        most = max(1.0, float(np.abs(x).max()))
        x = change(x, rng)
        peak = float(np.abs(x).max())
        return x * np.float32(most / peak) if most < peak < np.inf else x

    return on_values(bounded, p)


@register("augment", "speed")
def speed(factors: list[float] = (0.9, 1.0, 1.1), p: float = 1.0):
    """Play faster or slower by one of ``factors``, pitch included (Ko et al. 2015). x (N,) -> (ceil(N / factor),).

    Factors count to three decimals.
    """
    if not factors or min(factors) <= 0:
        raise ValueError(f"factors {list(factors)}: expected some numbers above 0")
    return on_values(lambda x, rng: played(x, stretch_of(float(rng.choice(factors)))), p)


def stretch_of(factor: float) -> "Fraction":
    """How many times as long something is at a speed; the speed counts to three decimals."""
    from fractions import Fraction

    return 1 / Fraction(factor).limit_denominator(1000)


def played(x: np.ndarray, stretch: "Fraction") -> np.ndarray:
    """Samples (N,) played slower or faster -> (ceil(N * stretch),)."""
    from scipy.signal import resample_poly

    return x if stretch == 1 else resample_poly(x, stretch.numerator, stretch.denominator).astype(np.float32)


@register("augment", "gain")
def gain(low_db: float = -6.0, high_db: float = 6.0, p: float = 1.0):
    """Multiply by a uniformly drawn number of decibels."""
    interval(low_db, high_db, least=-np.inf)

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        return (x * 10 ** (rng.uniform(low_db, high_db) / 20)).astype(np.float32)

    return on_samples(change, p)


@register("augment", "noise")
def noise(
    low_snr_db: float = 10.0,
    high_snr_db: float = 40.0,
    p: float = 0.5,
    color: Literal["white", "pink"] = "white",
    folder: str | None = None,
    rate: int | None = None,
):
    """Add noise at a uniformly drawn ratio of signal to noise, the mean squares of both over the whole item.

    White or pink (power as 1 / frequency) Gaussian noise or, with a ``folder``, its recordings: one is drawn for each
    item, played at ``rate`` Hz (default: that of the rows) and cut or repeated to the item's length, see
    ``seqformer.augment.recordings``. Silence, of either, adds nothing.
    """
    interval(low_snr_db, high_snr_db, least=-np.inf)
    make = {"white": _white, "pink": _pink}[color]
    if folder is not None:
        from seqformer.augment.recordings import Recordings

        make = Recordings(folder, rate).stretch

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        ratio = 10 ** (-rng.uniform(low_snr_db, high_snr_db) / 20)
        added = make(len(x), rng)
        loudness = _loudness(added)
        return x + np.float32(_loudness(x) * ratio / loudness) * added if loudness else x

    return on_samples(change, p)


def _loudness(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _white(length: int, rng: Rng) -> np.ndarray:
    return rng.standard_normal(length, dtype=np.float32)


def _pink(length: int, rng: Rng) -> np.ndarray:
    """White noise whose amplitudes are divided by the root of their frequency; none at 0 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, length).astype(np.float32)


@register("augment", "equalizer")
def equalizer(deviation_db: float = 5.0, bands: int = 8, p: float = 1.0):
    """Filter by a random smooth response: another microphone, another room, another voice's colour.

    Gains at ``bands`` frequencies, spaced as the ear's (HTK mel of a 16 kHz recording), are drawn from a normal
    distribution of ``deviation_db`` and joined by straight lines in decibels.
    """

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        spectrum = np.fft.rfft(x)
        position = np.log1p(np.linspace(0, 8000 / 700, len(spectrum)))
        knots = np.linspace(0, position[-1], bands)
        response = 10 ** (np.interp(position, knots, rng.normal(0, deviation_db, bands)) / 20)
        return np.fft.irfft(spectrum * response, len(x)).astype(np.float32)

    return on_values(change, p)
