"""Predictions -> submission: ``python -m competitions.cmi_gestures.submit PREDICTIONS MANIFEST OUT``.

PREDICTIONS is what ``seqformer predict`` wrote for the test rows of MANIFEST. OUT has the gesture of each sequence:
what Kaggle's server asks for one by one.
"""

from pathlib import Path
from typing import Annotated

import polars
import typer

import seqformer


def submit(predictions: Path, manifest: Path, out: Path) -> None:
    """Check the predictions against the test rows and write them. Raises InputError, with nothing written."""
    found = seqformer.read_table(predictions, {"id": str, "prediction": list[float]})
    rows = seqformer.read_manifest(manifest, {"split": "test"})
    names = polars.Series(rows["gesture"].dtype.categories)
    named = found.select(
        polars.col("id").alias("sequence_id"), gesture=names.gather(found["prediction"].list.arg_max())
    )
    seqformer.write_submission(named, out, rows.select(polars.col("id").alias("sequence_id"), gesture=polars.lit("")))
    print(f"{named.height:,} sequences -> {out}")


def main(
    predictions: Annotated[Path, typer.Argument(help="The parquet file of seqformer predict.")],
    manifest: Annotated[Path, typer.Argument(help="The manifest predicted.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .csv, .csv.gz or .parquet.")],
) -> None:
    """Turn predictions into a submission."""
    submit(predictions, manifest, out)


if __name__ == "__main__":
    seqformer.run_command(main)
