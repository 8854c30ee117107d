"""A CTC run's alignment as targets of frames: ``python -m competitions.switchboard_hybrid.prepare RUN MANIFEST OUT``.

MANIFEST is the one that RUN was trained on; OUT is the same with a column ``spoken`` more: each text, and the states of
its frames as each fold of RUN aligned those rows that it may be trained on.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

import seqformer


def prepare(run: Path, manifest: Path, out: Path, states: int = 1, hop_ms: float | None = None, reach_ms: float = 80.0):
    """Write the manifest ``out`` and say which texts did not align. Raises InputError as align_rows does."""
    if states < 1 or reach_ms < 0 or (hop_ms is not None and hop_ms <= 0):
        raise seqformer.InputError(f"states {states}, hop {hop_ms} ms, reach {reach_ms} ms: expected positive numbers")
    table, failed = seqformer.align_rows(run, seqformer.read_manifest(manifest), "spoken", states, hop_ms, reach_ms)
    import polars

    folder = out.parent.resolve()  # paths relative to it, so that a folder of data can be moved
    place = polars.col("path").map_elements(lambda path: os.path.relpath(path, folder), return_dtype=polars.String)
    seqformer.write_manifest(table.with_columns(place), out)
    print(f"{table.height} rows -> {out}")
    if failed:
        print(
            f"{len(failed)} texts do not fit into their frames, which are not trained on: {seqformer.first_few(failed)}"
        )


def main(
    run: Annotated[Path, typer.Argument(help="A finished run of CTC, such as runs/librispeech_mini.")],
    manifest: Annotated[Path, typer.Argument(help="The manifest that it was trained on.")],
    out: Annotated[Path, typer.Argument(help="The manifest to write.")],
    states: Annotated[int, typer.Option(help="Of each unit.")] = 1,
    hop_ms: Annotated[float | None, typer.Option(help="Between frames; by default as in the run.")] = None,
    reach_ms: Annotated[float, typer.Option(help="How far a unit goes beyond its peak; what is left is silence.")] = 80,
) -> None:
    """Align the rows of a CTC run with their texts, fold by fold."""
    prepare(run, manifest, out, states, hop_ms, reach_ms)


if __name__ == "__main__":
    seqformer.run_command(main)
