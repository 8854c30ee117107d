"""Transcribing standard input as it comes: raw 16-bit PCM or WAV."""

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np

from seqformer.errors import InputError
from seqformer.model import SequenceModel
from seqformer.speech.streaming import Stream

PAUSE_S = 1.0  # nothing read for so long ends a line
AT_ONCE = 1 << 16  # bytes, at most; a pipe gives what is there
UNKNOWN_SIZE = 0x7FFF_F000  # a WAV written to a pipe states this many bytes or more, or none
PCM, EXTENSIBLE = 1, 0xFFFE


def listen(
    model: SequenceModel, source: io.BufferedIOBase, final: Callable[[str], None], partial: Callable[[str], None]
) -> None:
    """Read to the end of ``source`` and hand on each line: ``partial`` as it grows, ``final`` once it has ended.

    A line ends with a pause or the audio. ``source`` is a WAV file or else mono samples at the model's rate, both
    16-bit, little-endian. Raises InputError, after the last line, when the audio breaks off in the middle of a sample
    or before its header says, and before the first when there is none, or the model or the header is of another kind.
    """
    stream = Stream(model)
    pause, begun, shown, wrong = PAUSE_S / stream.frame_s, 0, "", None

    def text() -> str:
        return stream.tokenizer.decode([span.unit for span in stream.spans[begun:]])

    try:
        for samples in read_stream(source, stream.rate):
            stream.push(samples)
            if stream.spans[begun:] and stream.heard - stream.spans[-1].end >= pause:
                final(text())
                begun, shown = len(stream.spans), ""
            elif text() != shown:
                partial(shown := text())
    except (InputError, KeyboardInterrupt) as error:
        wrong = error
    if not isinstance(wrong, KeyboardInterrupt):  # which may have come in the middle of a step
        stream.finish()
    if line := text():
        final(line)
    if wrong is not None:
        raise wrong


def read_stream(source: io.BufferedIOBase, rate: int) -> Iterator[np.ndarray]:
    """Mono samples float32 in [-1, 1] of 16-bit PCM or WAV as they come; raises InputError as ``listen`` does."""
    rest = source.read(4)
    channels, size = 1, None
    if rest == b"RIFF":
        channels, size = _wav_header(source, rate)
        rest = b""
    width, seen = 2 * channels, len(rest)
    while True:
        whole, rest = rest[: len(rest) // width * width], rest[len(rest) // width * width :]
        if whole:
            x = np.frombuffer(whole, "<i2").astype(np.float32) / 32768
            yield x.reshape(-1, channels).mean(axis=1)
        more = source.read1(AT_ONCE if size is None else min(AT_ONCE, size - seen))
        if not more:
            break
        seen, rest = seen + len(more), rest + more
    seconds = seen // width / rate
    if not seen:
        raise InputError("standard input holds no audio")
    if size is not None and seen < size:
        raise InputError(f"the audio breaks off after {seconds:.2f} s of {size // width / rate:.2f} s")
    if rest:
        raise InputError(f"the audio breaks off inside a sample, after {seconds:.2f} s ({seen} bytes)")


def _wav_header(source: io.BufferedIOBase, rate: int) -> tuple[int, int | None]:
    """Channels, and bytes of audio where the header knows, of a WAV file whose first 4 bytes have been read."""
    kind = None
    if source.read(8)[4:] != b"WAVE":
        raise InputError("standard input begins with RIFF, and is no WAV file")
    while len(head := source.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data" and kind is not None:
            return kind, None if size >= UNKNOWN_SIZE or not size else size
        body = source.read(size + size % 2) if name != b"data" else b""
        if name == b"fmt " and len(body) >= 16:
            form, channels, found, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            form = struct.unpack("<H", body[24:26])[0] if form == EXTENSIBLE and len(body) >= 26 else form
            if form != PCM or bits != 16 or not channels:
                raise InputError(f"standard input is WAV of {bits} bits, format {form}; expected 16-bit PCM")
            if found != rate:
                raise InputError(f"standard input is WAV at {found} Hz; the model reads {rate} Hz")
            kind = channels
    raise InputError("standard input is a WAV file that breaks off in its header")
