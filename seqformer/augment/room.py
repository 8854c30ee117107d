"""Reverberation: rooms made up from their size and the time in which sound dies away in them, or recorded ones.

Source: Allen and Berkley 1979 (images of the source in a shoebox); Eyring 1930 (reflection of the walls); Lehmann and
Johansson 2010 (a diffuse tail after the first reflections).
"""

import itertools
import math

import numpy as np

from seqformer.augment.compose import Rng, interval
from seqformer.augment.recordings import Recordings
from seqformer.augment.waveform import on_samples
from seqformer.errors import InputError
from seqformer.registry import register

SOUND = 343.0  # metres a second, in air of 20 degrees
MIXED = 4e-3  # images are single up to so many seconds times the root of the volume in m^3; then there are too many
HEIGHT = (2.4, 4.0)  # metres
MARGIN = 0.5  # metres from a wall, for the source and for the microphone


@register("augment", "reverb")
def reverb(
    low_rt60: float = 0.2,
    high_rt60: float = 0.8,
    low_metres: float = 3.0,
    high_metres: float = 10.0,
    p: float = 0.5,
    folder: str | None = None,
    rate: int | None = None,
):
    """Play in a room that is drawn for each item: its length, width and RT60 (seconds to -60 dB), height and positions.

    With a ``folder``, its recorded impulse responses (one channel each) are the rooms, drawn with equal chances. The
    direct sound, the largest sample of a recorded response, stays where it was, what rings on after the end is cut, and
    the mean square is that of ``x``: neither time, length nor loudness moves. ``rate`` in Hz, default: the rows'.
    """
    interval(low_rt60, high_rt60, least=0.05)
    interval(low_metres, high_metres, least=2 * MARGIN + 0.5)
    if rate is None:
        raise InputError("reverb needs the rate of the rows, not known here; give rate")
    recorded = None if folder is None else Recordings(folder, rate)
    from scipy.signal import oaconvolve

    def change(x: np.ndarray, rng: Rng) -> np.ndarray:
        if recorded is not None:
            response = recorded.whole(int(rng.integers(len(recorded.paths))))
            direct = int(np.abs(response).argmax())
        else:
            size = (*rng.uniform(low_metres, high_metres, 2), rng.uniform(*HEIGHT))
            source, microphone = rng.uniform(MARGIN, np.subtract(size, MARGIN), (2, 3))
            response = room_response(size, source, microphone, rng.uniform(low_rt60, high_rt60), rate, rng)
            direct = round(math.dist(source, microphone) / SOUND * rate)
        heard = oaconvolve(x, response[: direct + len(x)])[direct : direct + len(x)]
        power = np.mean(np.square(heard, dtype=np.float64))
        level = np.sqrt(np.mean(np.square(x, dtype=np.float64)) / power) if power else 0.0
        return (heard * level).astype(np.float32)

    return on_samples(change, p)


def room_response(size, source, microphone, rt60: float, rate: int, rng: Rng) -> np.ndarray:
    """Impulse response (N,) of a shoebox of ``size`` (3,) metres, from the emission on: 1 / r at r metres, undamped.

    Images of the source lie at the nearest sample. Once they are dense (``MIXED``), the rest is Gaussian noise of the
    power that a diffuse field has: 4 pi c / V a second, falling by 60 dB in ``rt60``. That keeps ``rt60`` to some
    percent, where images alone, of walls that are all alike, ring 1.4 to 1.8 times as long in rooms this flat, and it
    takes 0.4 ms in place of up to 150.
    """
    size, volume = np.asarray(size, dtype=float), float(np.prod(size))
    # The direct sound is an image, whatever the room.
    mixed = max(min(MIXED * math.sqrt(volume), rt60), math.dist(source, microphone) / SOUND)
    delays, gains = images(size, np.asarray(source), np.asarray(microphone), rt60, mixed * SOUND)
    samples, first = math.ceil(max(rt60, mixed) * rate) + 1, math.floor(mixed * rate) + 1
    response = np.bincount(np.rint(delays * rate).astype(np.int64), gains, samples)
    time = np.arange(first, samples) / rate
    level = math.sqrt(4 * math.pi * SOUND / (volume * rate))
    response[first:] += level * np.exp(-3 * math.log(10) / rt60 * time) * rng.standard_normal(len(time))
    return response.astype(np.float32)


def images(
    size: np.ndarray, source: np.ndarray, microphone: np.ndarray, rt60: float, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Delays in seconds and gains of all images of the source within ``reach`` metres of the microphone.

    Along each axis they lie at 2 n L +- s, behind |2 n| or |2 n - 1| walls. A wall reflects exp(-12 ln(10) V / (c S
    rt60)) of the pressure: Eyring's formula, solved for it.
    """
    surface = 2 * sum(a * b for a, b in itertools.combinations(size, 2))
    damping = 12 * math.log(10) * float(np.prod(size)) / (SOUND * surface * rt60)  # of the pressure at a wall
    squares, walls = np.zeros(1), np.zeros(1)
    for length, place, heard in zip(size, source, microphone, strict=True):
        n = np.arange(-math.ceil(reach / (2 * length)) - 1, math.ceil(reach / (2 * length)) + 2)
        offset = np.concatenate([2 * n * length + place, 2 * n * length - place]) - heard
        behind = np.concatenate([np.abs(2 * n), np.abs(2 * n - 1)])
        squares, walls = (np.add.outer(*pair).ravel() for pair in ((squares, offset**2), (walls, behind)))
        near = squares <= reach**2
        squares, walls = squares[near], walls[near]
    distance = np.sqrt(squares)
    return distance / SOUND, np.exp(-damping * walls) / distance
