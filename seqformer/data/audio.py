"""Reading audio files whole, or refusing them.

libsndfile reads a WAV or Opus file that was cut short without complaint and returns less audio, so that the text no
longer fits. So every file is held against its own structure first, and what was decoded against what the file states.
Not found out: an MP3 cut between two frames, which states no length of its own.
"""

import io
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seqformer.errors import InputError

MOST_SAMPLES = 2**32  # a FLAC written to a pipe has no length, and libsndfile then states 2**63 - 1
Span = tuple[int, int]  # where a file lies in another: its first byte, and how many
UNKNOWN_SIZE = 0x7FFF_F000  # a WAV written to a pipe states this many bytes or more, because nobody knew the length


def read_audio(path: str | Path, rate: int | None = None, span: Span | None = None) -> tuple[np.ndarray, int]:
    """Samples (N,) float32 in [-1, 1] and their rate in Hz; channels are averaged, the rate converted to ``rate``.

    Reads what libsndfile reads: FLAC, WAV, Opus, OGG, MP3; with ``span``, that part of a file, such as a member of a
    tar archive. Raises InputError naming the file when it is missing, empty, cut short or damaged.
    """
    samples, found = _decode(Path(path), "float32", span)
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return (mono, found) if rate is None else (resample(mono, found, rate), rate)


def read_part(path: str | Path, start: int, frames: int) -> np.ndarray:
    """``frames`` samples (N,) float32 from sample ``start`` on, at the file's own rate; channels are averaged.

    Reads no more than it must, so that a file of hours serves as well as one of seconds. Raises InputError as
    ``read_audio`` does, and where the file ends before.
    """
    with _opened(Path(path)) as file:
        file.seek(start)
        samples = file.read(frames, dtype="float32", always_2d=True)
    if len(samples) != frames or not np.isfinite(samples).all():
        raise InputError(f"{path}: damaged: {frames} samples from {start} on cannot be decoded")
    return samples.mean(axis=1)


def read_pcm(path: str | Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """Samples int16 (N,) of one mono file, for a store, and their rate in Hz; resampled when ``rate`` is another.

    Raises InputError as ``read_audio`` does, and when there is more than one channel.
    """
    samples, found = _decode(Path(path), "int16")
    if samples.ndim > 1:
        raise InputError(f"{path}: {samples.shape[1]} channels; mix them down to one")
    if samples.dtype != np.int16:
        samples = to_int16(samples * 32768)
    if rate is None or rate == found:
        return samples, found
    return to_int16(resample(samples.astype(np.float32), found, rate)), rate


def read_pcm_files(paths: Iterable[Path], rate: int | None = None) -> Iterator[tuple[np.ndarray, int] | InputError]:
    """``read_pcm`` of many files, or the error it raised; in order, decoded a few files ahead."""

    def read(path: Path) -> tuple[np.ndarray, int] | InputError:
        try:
            return read_pcm(path, rate)
        except InputError as error:
            return error

    return read_ahead(read, paths)


def read_ahead(read: Callable, items: Iterable) -> Iterator:
    """``map(read, items)``, a few of them ahead.

    Threads are enough, because libsndfile decodes outside Python's lock; the short queue bounds the memory.
    """
    workers = min(os.cpu_count() or 1, 16)
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) >= 8 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def audio_facts(path: str | Path, span: Span | None = None) -> dict[str, int]:
    """``frames`` (samples) and ``rate`` (Hz) of an audio file. Raises InputError as ``read_audio`` does."""
    with _opened(Path(path), span) as file:
        return {"frames": file.frames, "rate": file.samplerate}


def read_windows(path: str | Path, rate: int, window: int, step: int) -> Iterator[np.ndarray]:
    """Mono samples float32 of a file at ``rate`` Hz, ``window`` of them from every ``step``-th on; the last is shorter.

    Never more than a window is held. ``step`` is a multiple of ``resampling(found, rate)[0]``, so that windows of a
    file at another rate have their samples in the same places; they differ at their ends only, where the filter sees
    nothing beyond. Raises InputError as ``read_audio`` does.
    """
    path = Path(path)
    with _opened(path) as file:
        up, down = resampling(file.samplerate, rate)
        if step % up:
            raise ValueError(f"step {step} is no multiple of {up}")
        size, move, start = math.ceil(window * down / up), step * down // up, 0
        held = np.zeros((0, file.channels), np.float32)
        while True:
            more = file.read(size - len(held), dtype="float32", always_2d=True)
            if not np.isfinite(more).all():
                raise InputError(f"{path}: samples are NaN or infinite")
            held = np.concatenate([held, more])
            if len(held) != min(size, file.frames - start):
                raise InputError(f"{path}: damaged: {start + len(held)} of {file.frames} samples can be decoded")
            yield resample(held.mean(axis=1), file.samplerate, rate)
            if start + size >= file.frames:
                return
            held, start = held[move:], start + move


def resampling(rate: int, wanted: int) -> tuple[int, int]:
    """(up, down): the smallest whole numbers in the proportion of two rates."""
    shared = math.gcd(rate, wanted)
    return wanted // shared, rate // shared


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Polyphase resampling (N,) -> (ceil(N * wanted / rate),), float32."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    return resample_poly(samples, *resampling(rate, wanted)).astype(np.float32)


def _decode(path: Path, dtype: str, span: Span | None = None) -> tuple[np.ndarray, int]:
    """All samples (N,) or (N, channels) and their rate in Hz; float32 for a file of floats, whatever is asked."""
    with _opened(path, span) as file:
        # libsndfile does not scale float samples in [-1, 1] when asked for integers: nearly all would become 0
        samples = file.read(dtype="float32" if file.subtype in ("FLOAT", "DOUBLE") else dtype)
        if len(samples) != file.frames:
            raise InputError(f"{path}: damaged: {len(samples)} of {file.frames} samples can be decoded")
        if samples.dtype != np.int16 and not np.isfinite(samples).all():
            raise InputError(f"{path}: samples are NaN or infinite")
        return samples, file.samplerate


@contextmanager
def _opened(path: Path, span: Span | None = None):
    """The open SoundFile of a file that is whole; what goes wrong with it becomes an InputError that names it."""
    import soundfile

    place = path if span is None else f"{path} at byte {span[0]}"
    if not path.is_file():
        raise InputError(f"no audio file at {path}")
    try:
        with open(path, "rb") as file:
            content = file if span is None else _part(file, *span)
            if not _size(content):
                raise InputError(f"{place}: the file has 0 bytes")
            if _is_cut_short(content):
                raise InputError(f"{place}: the file is cut short")
            content.seek(0)
            with soundfile.SoundFile(path if span is None else content) as opened:
                # AIFF, AU, RF64, W64: libsndfile's own log says so, and it is all that does
                if opened.format not in ("WAV", "WAVEX") and "(should be" in opened.extra_info:
                    raise InputError(f"{place}: the file is cut short")
                if opened.frames > MOST_SAMPLES:
                    raise InputError(f"{place}: the file does not state its length; encode it again")
                if not opened.frames:
                    raise InputError(f"{place}: the file has no samples")
                yield opened
    except (OSError, soundfile.SoundFileError, TypeError, MemoryError) as error:  # TypeError: a headerless .raw
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise InputError(f"{place}: {reason or 'damaged'}") from error


def _part(file: BinaryIO, start: int, size: int) -> BinaryIO:
    """Some bytes of a file as one of their own; fewer, where it ends before."""
    file.seek(start)
    return io.BytesIO(file.read(size))


def _size(content: BinaryIO) -> int:
    return content.seek(0, os.SEEK_END)


def _is_cut_short(content: BinaryIO) -> bool:
    """Whether a WAV or Ogg file ends before its own structure says; for FLAC libsndfile raises by itself."""
    size = _size(content)
    content.seek(0)
    start = content.read(12)
    if start[:4] in (b"RIFF", b"RIFX") and start[8:] == b"WAVE":
        while len(head := content.read(8)) == 8:
            name, length = struct.unpack("<4sI" if start[:4] == b"RIFF" else ">4sI", head)
            if name == b"data":
                return length < UNKNOWN_SIZE and content.tell() + length > size
            content.seek(length + length % 2, os.SEEK_CUR)
        return True
    if start[:4] != b"OggS":
        return False
    pages = start + content.read()
    position, last_flag = 0, 0
    while pages[position : position + 4] == b"OggS" and position + 27 <= len(pages):
        segments = pages[position + 27 : position + 27 + pages[position + 26]]
        last_flag = pages[position + 5] & 4  # RFC 3533: bit 2 marks the last page of a stream
        position += 27 + pages[position + 26] + sum(segments)
    return not last_flag or position > len(pages)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Round float samples in int16 units, clipped to what int16 holds."""
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
