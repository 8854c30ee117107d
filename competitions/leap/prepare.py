"""LEAP -> manifest and store: ``python -m competitions.leap.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.csv`` and ``test.csv``. OUT gets ``manifest.parquet``, ``profiles/`` (60, 9) of the
levels, top first, and ``scale.parquet`` with the mean and the deviation of each target. Rows are in the order of time,
and neighbours are alike: folds must keep them together.

| column | meaning |
|---|---|
| static | (16,): the numbers of the whole column of air |
| tendency | (60, 6): what happens to t, q0001, q0002, q0003, u, v, each level less its mean, by its deviation |
| flux | (8,): the cam_out values, the same way |
| block | one of ``BLOCKS`` stretches of the training file that follow each other |
| split | train or test; test rows have no targets |

A target that never changes is not scored; a submission says its mean.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.leap.columns import FLUXES, INPUTS, LEVELS, PROFILES, SCALARS, TARGETS, TENDENCIES, levels_of

BLOCKS = 50


def read_split(folder: Path, split: str, columns: tuple[str, ...]) -> polars.DataFrame:
    """The rows of one file. Raises InputError naming file, column and row."""
    path = folder / f"{split}.csv"
    table = seqformer.read_table(path, {"sample_id": str} | dict.fromkeys(columns, float))
    for name in columns:
        infinite = table[name].is_infinite()
        if infinite.any():
            raise seqformer.InputError(f"{path}: column {name!r} is infinite in row {int(infinite.arg_max()) + 1}")
    return table


def profiles_of(table: polars.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Columns of levels as (rows, 60, names)."""
    flat = table.select(levels_of(names)).to_numpy()
    return flat.reshape(len(table), len(names), LEVELS).transpose(0, 2, 1)


def scale_of(table: polars.DataFrame) -> polars.DataFrame:
    """column, mean and deviation of each target; deviation 0 for what is constant but for rounding."""
    values = table.select(TARGETS).to_numpy()
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    varies = deviation > 1e-9 * np.abs(mean)
    return polars.DataFrame({"column": TARGETS, "mean": mean, "deviation": np.where(varies, deviation, 0.0)})


def targets_of(table: polars.DataFrame, scale: polars.DataFrame) -> list[polars.Series]:
    """Columns ``tendency`` and ``flux`` of the training rows."""
    deviation = scale["deviation"].to_numpy()
    values = (table.select(TARGETS).to_numpy() - scale["mean"].to_numpy()) / np.where(deviation > 0, deviation, np.nan)
    scaled = polars.DataFrame(values, schema=list(TARGETS))
    tendency = polars.Series("tendency", np.ascontiguousarray(profiles_of(scaled, TENDENCIES), np.float32))
    return [tendency.arr.to_list(), polars.Series("flux", scaled.select(FLUXES).to_numpy().astype(np.float32))]


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet``, ``out/profiles`` and ``out/scale.parquet``; print a line. Raises InputError."""
    folder, out = Path(folder), Path(out)
    train, test = read_split(folder, "train", (*INPUTS, *TARGETS)), read_split(folder, "test", INPUTS)
    tables = []
    with seqformer.StoreWriter(out / "profiles", "float32") as store:
        for split, table in (("train", train), ("test", test)):
            rows = [store.add(frames.astype(np.float32)) for frames in profiles_of(table, PROFILES)]
            static = polars.Series("static", table.select(SCALARS).to_numpy().astype(np.float32))
            place = {"id": table["sample_id"], "path": "profiles", "row": rows, "frames": LEVELS, "split": split}
            tables.append(polars.DataFrame(place).with_columns(static))
        scale = scale_of(train)
        blocks = np.arange(train.height) * BLOCKS // train.height
        tables[0] = tables[0].with_columns(*targets_of(train, scale), polars.Series("block", blocks))
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    scale.write_parquet(out / "scale.parquet")
    seqformer.write_manifest(polars.concat(tables, how="diagonal"), out / "manifest.parquet")
    constant = int((scale["deviation"] == 0).sum())
    print(f"{train.height:,} rows to train on, {test.height:,} to predict, {constant} targets never change")
    return out / "manifest.parquet"


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and the store.")],
) -> None:
    """Turn the LEAP files into a manifest and a store."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
