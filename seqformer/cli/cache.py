"""The command that decodes a manifest's audio once."""

from pathlib import Path
from typing import Annotated

import typer

from seqformer.errors import InputError


def cache(
    manifest: Annotated[Path, typer.Argument(help="A manifest of audio files, or of tar archives of them.")],
    out: Annotated[Path, typer.Argument(help="Folder for the new manifest.parquet and audio/.")],
    rate: Annotated[int | None, typer.Option(help="Convert to this rate in Hz, once and for all.")] = None,
) -> None:
    """Decode all audio of a manifest to 16-bit samples, for workers to read and copy: 115 MB an hour at 16 kHz."""
    from seqformer.data.cache import cache_audio
    from seqformer.data.manifest import read_manifest

    if out.resolve() == manifest.parent.resolve():
        raise InputError(f"{out} holds the manifest to read from; give another folder")
    table = read_manifest(manifest)
    rounded = cache_audio(table, out, rate)
    note = f"; {rounded:,} rows are not 16-bit samples of that rate and were rounded" if rounded else ""
    typer.echo(f"{table.height:,} rows -> {out / 'manifest.parquet'}{note}")
