"""Subtitle files of words with their times: SubRip (.srt) and WebVTT (.vtt)."""

import textwrap
from collections.abc import Iterable

from seqformer.decode.align import Word

# Of a caption; subtitlers' usual figures.
LINE, LINES, LONGEST_S, PAUSE_S = 42, 2, 6.0, 1.0


def captions(words: Iterable[Word]) -> list[list[Word]]:
    """Words that are shown together: at most two lines of 42 characters and 6 seconds, and no pause of a second."""
    found: list[list[Word]] = []
    for word in words:
        last = found[-1] if found else None
        if (
            last is None
            or word.start - last[-1].end >= PAUSE_S
            or word.end - last[0].start > LONGEST_S
            or len(_lines([*last, word])) > LINES
        ):
            found.append([word])
        else:
            last.append(word)
    return found


def srt(words: Iterable[Word]) -> str:
    """A SubRip file."""
    shown = enumerate(captions(words), start=1)
    return "".join(
        f"{number}\n{_clock(some[0].start, ',')} --> {_clock(some[-1].end, ',')}\n" + "\n".join(_lines(some)) + "\n\n"
        for number, some in shown
    )


def vtt(words: Iterable[Word]) -> str:
    """A WebVTT file; & and < are written as its character references."""
    cues = []
    for some in captions(words):
        text = "\n".join(_lines(some)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_clock(some[0].start, '.')} --> {_clock(some[-1].end, '.')}\n{text}\n\n")
    return "WEBVTT\n\n" + "".join(cues)


def _lines(words: Iterable[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False)


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    return "{:02}:{:02}:{:02}{}{:03}".format(*divmod(minutes, 60), milliseconds // 1000, point, milliseconds % 1000)
