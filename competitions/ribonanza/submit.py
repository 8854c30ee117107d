"""Predictions -> submission: ``python -m competitions.ribonanza.submit MANIFEST OUT PREDICTIONS...``.

PREDICTIONS are files of ``seqformer predict``, together of all test rows of MANIFEST, such as one for each ``part``;
one is in memory at a time. OUT (.csv, .csv.gz or .parquet) gets a line for each base, id_min to id_max, from 0 to 1.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.ribonanza.prepare import PROBES


class Parts(Mapping):
    """{id: (T, 2), clipped to 0-1} of several files, of which the one asked last is kept. Raises InputError."""

    def __init__(self, paths: list[Path]):
        self.places: dict[str, Path] = {}
        for path in paths:
            ids = seqformer.read_table(path, {"id": str})["id"].to_list()
            twice = [name for name in ids if name in self.places]
            if twice:
                raise seqformer.InputError(f"{path}: {seqformer.first_few(twice)} are in another file as well")
            self.places |= dict.fromkeys(ids, path)
        self.open, self.rows, self.values = None, {}, None

    def __getitem__(self, name: str) -> np.ndarray:
        path = self.places[name]
        if path != self.open:
            table = seqformer.read_table(path, {"id": str, "prediction": list[list[float]]})
            self.open, self.rows = path, {row_id: row for row, row_id in enumerate(table["id"])}
            self.values = table["prediction"].cast(polars.List(polars.List(polars.Float32)))
        return np.array(self.values[self.rows[name]].to_list(), np.float32).clip(0, 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def submit(manifest: Path, out: Path, predictions: list[Path]) -> None:
    """Check the predictions against the test rows and write them. Raises InputError, with nothing written."""
    rows = seqformer.read_manifest(manifest, {"split": "test"}).select("id", "id_min", "id_max", "frames")
    columns = [f"reactivity_{probe}" for probe in PROBES]
    seqformer.write_ragged_submission(Parts(predictions), out, rows, columns)
    print(f"{rows['frames'].sum():,} lines of {rows.height:,} sequences -> {out}")


def main(
    manifest: Annotated[Path, typer.Argument(help="The manifest predicted.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .csv, .csv.gz or .parquet.")],
    predictions: Annotated[list[Path], typer.Argument(help="Files of seqformer predict.")],
) -> None:
    """Turn predictions into a submission."""
    submit(manifest, out, predictions)


if __name__ == "__main__":
    seqformer.run_command(main)
