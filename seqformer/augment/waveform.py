"""Transforms of raw audio, x (N,) samples in [-1, 1]."""

import numpy as np

from seqformer.augment.compose import Rng, on_values
from seqformer.registry import register


@register("augment", "speed")
def speed(factors: list[float] = (0.9, 1.0, 1.1), p: float = 1.0):
    """Play faster or slower by one of ``factors``, pitch included (Ko et al. 2015). x (N,) -> (ceil(N / factor),).

    Factors count to three decimals.
    """
    if not factors or min(factors) <= 0:
        raise ValueError(f"factors {list(factors)}: expected some numbers above 0")
    from fractions import Fraction

    from scipy.signal import resample_poly

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        ratio = 1 / Fraction(float(rng.choice(factors))).limit_denominator(1000)
        return x if ratio == 1 else resample_poly(x, ratio.numerator, ratio.denominator).astype(np.float32)

    return on_values(change, p)


@register("augment", "gain")
def gain(low_db: float = -6.0, high_db: float = 6.0, p: float = 1.0):
    """Multiply by a uniformly drawn number of decibels."""

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        return (x * 10 ** (rng.uniform(low_db, high_db) / 20)).astype(np.float32)

    return on_values(change, p)


@register("augment", "noise")
def noise(low_snr_db: float = 10.0, high_snr_db: float = 40.0, p: float = 0.5):
    """Add white Gaussian noise at a uniformly drawn signal-to-noise ratio."""

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        level = np.sqrt(np.mean(np.square(x))) * 10 ** (-rng.uniform(low_snr_db, high_snr_db) / 20)
        return x + np.float32(level) * rng.standard_normal(len(x), dtype=np.float32)

    return on_values(change, p)


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
