"""Predictions -> submission: ``python -m competitions.openvaccine.submit PREDICTIONS MANIFEST OUT.csv``.

PREDICTIONS is what ``seqformer predict`` wrote for the test rows of MANIFEST. OUT gets Kaggle's form: a line
``<id>_<position>`` with the five targets for every base, those that are not scored too.
"""

from pathlib import Path
from typing import Annotated

import typer

import seqformer
from competitions.openvaccine.prepare import TARGETS


def submit(predictions: Path, manifest: Path, out: Path) -> None:
    """Check the predictions against the test rows and write them. Raises InputError, with nothing written."""
    found = seqformer.read_table(predictions, {"id": str, "prediction": list[list[float]]})
    rows = seqformer.read_manifest(manifest, {"split": "test"}).select("id", "frames")
    seqformer.write_ragged_submission(found, out, rows, list(TARGETS), key="id_seqpos")
    print(f"{rows['frames'].sum():,} lines of {rows.height:,} sequences -> {out}")


def main(
    predictions: Annotated[Path, typer.Argument(help="The parquet file of seqformer predict.")],
    manifest: Annotated[Path, typer.Argument(help="The manifest predicted.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .csv, .csv.gz or .parquet.")],
) -> None:
    """Turn predictions into a submission."""
    submit(predictions, manifest, out)


if __name__ == "__main__":
    seqformer.run_command(main)
