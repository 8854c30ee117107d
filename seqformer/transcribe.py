"""What ``seqformer transcribe`` does: files whole or by windows, subtitles, standard input."""

import sys
from collections.abc import Iterator
from pathlib import Path

from seqformer import pretrained
from seqformer.data.audio import audio_facts
from seqformer.decode.align import Word, word_times
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.consensus import consensus
from seqformer.errors import InputError
from seqformer.listen import listen
from seqformer.long_audio import read_long
from seqformer.model import SequenceModel
from seqformer.predict import TrainedRun
from seqformer.subtitles import srt, vtt

LONG_S = 120.0  # attention over a whole recording takes memory with the square of its length
WINDOW_S = 30.0


def transcribe_files(
    run: TrainedRun | None,
    source: str,
    files: list[Path],
    decoder: BeamDecoder | None = None,
    window_s: float | None = None,
    overlap_s: float = 5.0,
    srt_path: Path | None = None,
    vtt_path: Path | None = None,
) -> dict[str, str]:
    """{file: its text} by all folds of a run, or by the checkpoint at ``source``; the subtitles of a file written.

    With ``window_s``, for subtitles, and beyond two minutes, a file is read by windows. Raises InputError when
    subtitles are asked for other than one file, a file cannot be read, or the model makes no text.
    """
    if (srt_path or vtt_path) and len(files) != 1:
        raise InputError(f"subtitles are of one file; found {len(files)}")
    facts = {str(path): audio_facts(path) for path in files}
    split = window_s is not None or srt_path is not None or vtt_path is not None
    long = [name for name, fact in facts.items() if split or fact["frames"] > LONG_S * fact["rate"]]
    whole = [name for name in facts if name not in long]
    found, models = {}, None if run else [pretrained.load_pretrained(source)]
    if whole and run:
        import polars

        rows = [{"id": name, "path": str(Path(name).resolve())} | facts[name] for name in whole]
        found |= run.predict(polars.DataFrame(rows), decoder=decoder)
    elif whole:
        found |= pretrained.transcribe_files(models[0], whole, decoder)
    if long:
        models = models or list(folds_of(run))
    for name in long:
        found[name], words = _by_windows(models, name, window_s or WINDOW_S, overlap_s, decoder)
        for path, write in ((srt_path, srt), (vtt_path, vtt)):
            if path is not None:
                path.write_text(write(words), encoding="utf-8")
    return found


def _by_windows(
    models: list[SequenceModel], name: str, window_s: float, overlap_s: float, decoder: BeamDecoder | None
) -> tuple[str, list[Word]]:
    """The text on which several models agree most, and the words of the one that it is from.

    As of whole files, a decoder reads the mean of models with one tokenizer.
    """
    alike = decoder is not None and len({str(model.tokenizer.state()) for model in models}) == 1
    read: dict[str, list[Word]] = {}
    texts = []
    progress = _progress if sys.stderr.isatty() else None
    for voice in [models] if alike else [[model] for model in models]:
        spans, frame_s = read_long(voice, name, window_s, overlap_s, decoder, progress)
        tokenizer = voice[0].tokenizer
        texts.append(tokenizer.decode([span.unit for span in spans]))
        read.setdefault(texts[-1], word_times(spans, tokenizer.spellings(), frame_s))
    best = consensus(texts)
    return best, read[best]


def _progress(done_s: float, total_s: float) -> None:
    print(f"\r{done_s / 60:.1f} of {total_s / 60:.1f} min ", end="", file=sys.stderr, flush=True)
    if done_s >= total_s:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)


def folds_of(run: TrainedRun) -> Iterator[SequenceModel]:
    """The model of each finished fold, with its tokenizer."""
    for name in run.names:
        yield run.fold(name.removeprefix("fold"))


def transcribe_stream(run: TrainedRun | None, source: str) -> None:
    """Print lines of text as standard input brings them: whole ones on standard output, growing ones on error.

    Of a run its first finished fold listens. Raises InputError as ``listen`` does.
    """
    model = next(folds_of(run)) if run else pretrained.load_pretrained(source)
    start, end = ("\r", "") if sys.stderr.isatty() else ("", "\n")

    def final(line: str) -> None:
        print(start, end="", file=sys.stderr, flush=True)
        print(line, flush=True)

    listen(model, sys.stdin.buffer, final, lambda line: print(start + line, end=end, file=sys.stderr, flush=True))
