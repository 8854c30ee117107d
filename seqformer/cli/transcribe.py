"""The command that turns audio into text."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from seqformer.cli.decoder import with_decoder
from seqformer.errors import InputError


@with_decoder
def transcribe(
    model: Annotated[str, typer.Argument(help="A run folder, or a checkpoint: a .nemo file, a folder, owner/name.")],
    make: Callable,
    files: Annotated[list[Path] | None, typer.Argument(help="Audio files: any rate, mono or stereo.")] = None,
    window: Annotated[float | None, typer.Option(help="Read by windows of so many seconds [>2 min: 30].")] = None,
    overlap: Annotated[float | None, typer.Option(help="Seconds that neighbouring windows share [5].")] = None,
    srt: Annotated[Path | None, typer.Option(help="Write subtitles of the file as SubRip.")] = None,
    vtt: Annotated[Path | None, typer.Option(help="Write subtitles of the file as WebVTT.")] = None,
    ctm: Annotated[Path | None, typer.Option(help="Write words, their times and confidences, as NIST CTM.")] = None,
    textgrid: Annotated[Path | None, typer.Option(help="Write words and their times for Praat.")] = None,
    stream: Annotated[bool, typer.Option(help="Read standard input as it comes: 16-bit PCM or WAV.")] = False,
) -> None:
    """Print the text of audio files, one line each, or of audio as it comes."""
    from seqformer.cli import open_run
    from seqformer.speech.transcribe import Reading, transcribe_files, transcribe_stream

    if stream == bool(files):
        raise InputError("transcribe reads files, or standard input with --stream: name one of them")
    decoder = make()
    given = {"--window": window, "--overlap": overlap, "--srt": srt, "--vtt": vtt, "--ctm": ctm, "--textgrid": textgrid}
    wrong = [name for name, value in given.items() if value is not None]
    wrong += ["--lm, --beam, --hot, --rescore or --decoder"] if decoder else []
    if stream and wrong:
        raise InputError(f"--stream prints what it hears at once, unit by unit; it does not go with {wrong[0]}")
    reading = Reading(window, 5.0 if overlap is None else overlap, decoder)
    run = open_run(Path(model)) if (Path(model) / "folds.parquet").is_file() else None
    if run is not None and not run.transcribes:
        raise InputError(f"{model} turns no audio into text: its frontend or its head is for something else")
    if stream:
        return transcribe_stream(run, model)
    out = {"srt": srt, "vtt": vtt, "ctm": ctm, "textgrid": textgrid}
    chosen = {kind: path for kind, path in out.items() if path is not None}
    for path, text in transcribe_files(run, model, files, reading, chosen):
        typer.echo(text if len(files) == 1 else f"{path}\t{text}")
