"""Reading audio files as mono float32 at a wanted rate."""

import math
from pathlib import Path

import numpy as np

from seqformer.errors import InputError


def read_audio(path: str | Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """Samples (N,) float32 in [-1, 1] and their rate in Hz; channels are averaged, the rate converted to ``rate``.

    Reads what libsndfile reads: FLAC, WAV, Opus, OGG, MP3. Raises InputError on a missing, unreadable or empty file.
    """
    import soundfile

    if not Path(path).is_file():
        raise InputError(f"no audio file at {path}")
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: unreadable audio: {error}") from error
    if not len(samples):
        raise InputError(f"{path}: the audio has no samples")
    mono = samples.mean(axis=1)
    return (mono, found) if rate is None else (resample(mono, found, rate), rate)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Polyphase resampling (N,) -> (ceil(N * wanted / rate),), float32."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // shared, rate // shared).astype(np.float32)


def audio_facts(path: str | Path) -> dict[str, int]:
    """``frames`` (samples) and ``rate`` (Hz) of an audio file. Raises InputError as ``read_audio`` does."""
    import soundfile

    if not Path(path).is_file():
        raise InputError(f"no audio file at {path}")
    try:
        facts = soundfile.info(str(path))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: unreadable audio: {error}") from error
    if not facts.frames:
        raise InputError(f"{path}: the audio has no samples")
    return {"frames": facts.frames, "rate": facts.samplerate}
