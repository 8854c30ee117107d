"""Predictions -> submission: ``python -m competitions.hms_eeg.submit PREDICTIONS SAMPLE OUT.csv``.

PREDICTIONS is what ``seqformer predict`` wrote for the test rows. OUT has a line for each ``eeg_id`` of SAMPLE.
"""

from pathlib import Path
from typing import Annotated

import polars
import typer

import seqformer
from competitions.hms_eeg.prepare import VOTES


def submit(predictions: Path, sample: Path, out: Path) -> None:
    """Check the predictions against the sample and write them. Raises InputError, with nothing written."""
    found = seqformer.read_table(predictions, {"id": str, "prediction": list[float]})
    columns = {name: polars.col("prediction").list.get(place) for place, name in enumerate(VOTES)}
    seqformer.write_submission(found.select(polars.col("id").alias("eeg_id"), **columns), out, sample)
    print(f"{found.height:,} recordings -> {out}")


def main(
    predictions: Annotated[Path, typer.Argument(help="The parquet file of seqformer predict.")],
    sample: Annotated[Path, typer.Argument(help="Kaggle's sample_submission.csv.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .csv, .csv.gz or .parquet.")],
) -> None:
    """Turn predictions into a submission."""
    submit(predictions, sample, out)


if __name__ == "__main__":
    seqformer.run_command(main)
