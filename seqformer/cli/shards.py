"""The command that makes a manifest of tar archives of audio."""

from pathlib import Path
from typing import Annotated

import typer


def index_tar(
    folder: Annotated[Path, typer.Argument(help="The folder of .tar files: <key>.flac and <key>.txt or .json.")],
    out: Annotated[Path, typer.Argument(help="The manifest to write, such as data/corpus/manifest.parquet.")],
) -> None:
    """Write a manifest that points into tar archives of audio, which are never unpacked."""
    import polars

    from seqformer.data.manifest import write_manifest
    from seqformer.data.shards import index_shards

    table = polars.DataFrame(index_shards(folder, out), infer_schema_length=None, strict=False)
    write_manifest(table, out)
    hours = (table["frames"] / table["rate"]).sum() / 3600
    archives = table["path"].n_unique()
    typer.echo(f"{table.height:,} rows of {archives:,} archives, {hours:,.2f} h, {', '.join(table.columns)} -> {out}")
