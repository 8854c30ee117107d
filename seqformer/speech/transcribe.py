"""What ``seqformer transcribe`` does: files whole or by windows, files of words with their times, standard input."""

import copy
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from seqformer import pretrained
from seqformer.data.audio import audio_facts
from seqformer.decode.align import Word, ctm, textgrid, word_times
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.consensus import consensus
from seqformer.errors import InputError
from seqformer.model import SequenceModel
from seqformer.predict import TrainedRun
from seqformer.speech.listen import listen
from seqformer.speech.long_audio import read_long
from seqformer.speech.subtitles import srt, vtt

LONG_S = 120.0  # attention over a whole recording takes memory with the square of its length
WINDOW_S = 30.0
OF_ONE_FILE: dict[str, Callable[[list[Word], float], str]] = {
    "srt": lambda words, seconds: srt(words),
    "vtt": lambda words, seconds: vtt(words),
    "textgrid": textgrid,
}


@dataclass(frozen=True)
class Reading:
    """How files are read: by windows of ``window_s`` (None: those beyond two minutes, by 30 s), greedily or not."""

    window_s: float | None = None
    overlap_s: float = 5.0
    decoder: BeamDecoder | None = None

    def window_of(self, seconds: float) -> float:
        """Infinite where a file is read whole."""
        usual = WINDOW_S if seconds > LONG_S else math.inf
        return usual if self.window_s is None else self.window_s


def transcribe_files(
    run: TrainedRun | None, source: str, files: list[Path], reading: Reading, out: Mapping[str, Path]
) -> Iterator[tuple[Path, str]]:
    """Each file and its text, as it is read by all folds of a run, or by the checkpoint at ``source``.

    ``out`` names files to write words and their times to, by kind: srt, vtt, textgrid (of one file), ctm. Raises
    InputError when these cannot be, a file cannot be read, or the model makes no text, or none by windows.
    """
    check_out(files, out)
    facts = {path: audio_facts(path) for path in files}
    seconds = {path: fact["frames"] / fact["rate"] for path, fact in facts.items()}
    whole = [] if out else [path for path in facts if reading.window_of(seconds[path]) == math.inf]
    models = None if run else [pretrained.load_pretrained(source)]
    found = _read_whole(run, models, {path: facts[path] for path in whole}, reading.decoder)
    words: dict[Path, list[Word]] = {}
    for path in files:
        if path not in found:
            models = models or [run.fold(name.removeprefix("fold")) for name in run.names]
            found[path], words[path] = _read_windows(models, path, seconds[path], reading)
        yield path, found[path]
    for kind, place in out.items():
        if kind == "ctm":
            text = ctm({path.stem: words[path] for path in words})
        else:
            text = OF_ONE_FILE[kind](words[files[0]], seconds[files[0]])
        place.write_text(text, encoding="utf-8")


def check_out(files: list[Path], out: Mapping[str, Path]) -> None:
    """Raise InputError where files of words could not be written once all is read."""
    for kind, place in out.items():
        if not place.parent.is_dir():
            raise InputError(f"--{kind} {place}: there is no folder {place.parent}")
        if kind != "ctm" and len(files) != 1:
            raise InputError(f"--{kind} is of one file; found {len(files)}")
    stems = Counter(path.stem for path in dict.fromkeys(files))
    for stem, count in stems.items() if "ctm" in out else ():
        if count > 1 or stem.split() != [stem]:
            wrong = f"{count} files are named" if count > 1 else "a space parts the fields, found"
            raise InputError(f"--ctm names recordings by their file, without folder and suffix: {wrong} {stem!r}")


def _read_whole(
    run: TrainedRun | None,
    models: list[SequenceModel] | None,
    facts: Mapping[Path, dict[str, int]],
    decoder: BeamDecoder | None,
) -> dict[Path, str]:
    """Texts of files read whole: by a run as it predicts rows."""
    if not facts:
        return {}
    if run is None:
        found = pretrained.transcribe_files(models[0], [str(path) for path in facts], decoder)
    else:
        import polars

        rows = [{"id": str(path), "path": str(path.resolve())} | fact for path, fact in facts.items()]
        plain = copy.copy(run)  # the config's own dataset may make its examples up
        plain.config = replace(run.config, dataset={"name": "rows"})
        found = plain.predict(polars.DataFrame(rows), decoder=decoder)
    return {path: found[str(path)] for path in facts}


def _read_windows(models: list[SequenceModel], path: Path, seconds: float, reading: Reading) -> tuple[str, list[Word]]:
    """The text on which several models agree most, and the words of the one that it is from.

    As of whole files, a decoder reads the mean of models with one tokenizer.
    """
    alike = reading.decoder is not None and len({str(model.tokenizer.state()) for model in models}) == 1
    window, read, texts = reading.window_of(seconds), {}, []
    voices = [models] if alike else [[model] for model in models]
    for number, voice in enumerate(voices, start=1):
        told = f", reading {number} of {len(voices)}" if len(voices) > 1 else ""
        progress = Progress(f"{path}{told}") if seconds > LONG_S else None
        spans, frame_s = read_long(voice, path, window, reading.overlap_s, reading.decoder, progress)
        words = word_times(spans, voice[0].tokenizer.spellings(), frame_s)
        texts.append(voice[0].tokenizer.decode([span.unit for span in spans]))
        read.setdefault(texts[-1], [word._replace(end=min(word.end, seconds)) for word in words])
    best = consensus(texts)
    return best, read[best]


class Progress:
    """Minutes read, on standard error: in place on a terminal, else a line for every tenth."""

    def __init__(self, name: str):
        self.name, self.tenths = name, 0

    def __call__(self, done_s: float, total_s: float) -> None:
        line = f"{self.name}: {done_s / 60:.1f} of {total_s / 60:.1f} min"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done_s >= total_s else "", file=sys.stderr, flush=True)
        elif (tenths := int(10 * done_s / total_s)) > self.tenths:
            print(line, file=sys.stderr, flush=True)
            self.tenths = tenths


def transcribe_stream(run: TrainedRun | None, source: str) -> None:
    """Print lines of text as standard input brings them: whole ones on standard output, growing ones on error.

    Of a run its first finished fold listens. Raises InputError as ``listen`` does.
    """
    model = run.fold(run.names[0].removeprefix("fold")) if run else pretrained.load_pretrained(source)
    start, end = ("\r", "") if sys.stderr.isatty() else ("", "\n")

    def final(line: str) -> None:
        print(start, end="", file=sys.stderr, flush=True)
        print(line, flush=True)

    listen(model, sys.stdin.buffer, final, lambda line: print(start + line, end=end, file=sys.stderr, flush=True))
