"""Checkpoints -> submission: ``python -m competitions.leap.submit MANIFEST SAMPLE OUT.csv CHECKPOINT...``.

Both heads are wanted, and ``seqformer predict`` writes the first: so each fold's model comes as a checkpoint, from
``seqformer save``, and their mean is written in the units of the files times SAMPLE's weight of each target.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.leap.columns import TARGETS

ITEMS = 256  # columns of air at a time


def predicted(model: seqformer.SequenceModel, rows: seqformer.SequenceDataset) -> np.ndarray:
    """Targets (rows, 368) in the order of the files, still less their mean and by their deviation."""
    found = []
    for first in range(0, len(rows), ITEMS):
        batch = seqformer.collate([rows.read(row) for row in range(first, min(first + ITEMS, len(rows)))])
        heads = model.predict(batch)
        pairs = zip(heads["tendency"], heads["flux"], strict=True)
        found += [np.concatenate([profile.T.ravel(), fluxes]) for profile, fluxes in pairs]
    return np.stack(found)


def submit(manifest: Path, sample: Path, out: Path, checkpoints: list[Path]) -> None:
    """Predict the test rows and write them. Raises InputError, with nothing written."""
    table = seqformer.read_manifest(manifest, {"split": "test"})
    scale = seqformer.read_table(
        Path(manifest).parent / "scale.parquet", {"column": str, "mean": float, "deviation": float}
    )
    rows = seqformer.SequenceDataset(table, inputs=["static"])
    votes = [predicted(seqformer.load_pretrained(folder), rows) for folder in checkpoints]
    values = np.mean(votes, axis=0, dtype=np.float64) * scale["deviation"].to_numpy() + scale["mean"].to_numpy()
    weights = seqformer.read_table(sample, {"sample_id": str} | dict.fromkeys(TARGETS, float))
    found = polars.DataFrame(values, schema=list(TARGETS)).insert_column(0, table["id"].alias("sample_id"))
    own = found.select("sample_id").join(weights, on="sample_id", how="left", maintain_order="left")
    found = found.with_columns(found[name] * own[name] for name in TARGETS)
    seqformer.write_submission(found, out, weights)
    print(f"{found.height:,} rows by {len(votes)} checkpoints -> {out}")


def main(
    manifest: Annotated[Path, typer.Argument(help="The manifest that prepare wrote.")],
    sample: Annotated[Path, typer.Argument(help="Kaggle's sample_submission.csv: its values are weights.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .csv, .csv.gz or .parquet.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Folders that seqformer save wrote, one a fold.")],
) -> None:
    """Turn checkpoints into a submission."""
    submit(manifest, sample, out, checkpoints)


if __name__ == "__main__":
    seqformer.run_command(main)
