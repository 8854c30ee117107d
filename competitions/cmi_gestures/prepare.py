"""CMI gestures -> manifest and store: ``python -m competitions.cmi_gestures.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.csv``, ``train_demographics.csv``, ``test.csv`` and ``test_demographics.csv``. OUT gets
``manifest.parquet`` and ``sensors/`` (T, 35), the last 200 frames of each sequence, of a right hand:

| channels | what |
|---|---|
| 0-2, 3-8, 9-11, 12-14 | acceleration, 6-D rotation, angular velocity, linear acceleration: see motion.py |
| 15-19 | the five thermopiles |
| 20-34 | of each time-of-flight sensor: mean and deviation of the distances, share of pixels that see anything |

| column | meaning |
|---|---|
| gesture | the class; those whose sequence_type is Target come first |
| phase | (T,): 0 moves, 1 at the target, 2 performs the gesture |
| subject, split | as in the source; test rows have no gesture and no phase |
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.cmi_gestures.columns import ACCELERATION, PHASES, PIXELS, ROTATION, SENSORS, THERMOPILES
from competitions.cmi_gestures.motion import motion

LAST = 200  # frames
OTHER_HAND = (0, 1, 4, 3, 2)  # the sensors at the sides, 3 and 5, change places
LABELS = {"sequence_type": str, "behavior": str, "gesture": str}
FRAME = {"sequence_id": str, "sequence_counter": int, "subject": str} | dict.fromkeys(SENSORS, float | None)


def read_split(folder: Path, split: str) -> polars.DataFrame:
    """Frames of one file with the handedness of their subject. Raises InputError naming file, column and row."""
    path, people = folder / f"{split}.csv", folder / f"{split}_demographics.csv"
    table = seqformer.read_table(path, FRAME | (LABELS if split == "train" else {}))
    hands = seqformer.read_table(people, {"subject": str, "handedness": int})
    if hands["subject"].is_duplicated().any() or not hands["handedness"].is_in([0, 1]).all():
        raise seqformer.InputError(f"{people}: expected each subject once, with handedness 0 (left) or 1 (right)")
    table = table.join(hands, on="subject", how="left", maintain_order="left")
    if table["handedness"].null_count():
        row = int(table["handedness"].is_null().arg_max())
        raise seqformer.InputError(
            f"{path}: subject {table['subject'][row]!r} of row {row + 1} is not in {people.name}"
        )
    if split == "train" and not table["behavior"].is_in(list(PHASES)).all():
        row = int((~table["behavior"].is_in(list(PHASES))).arg_max())
        found = f"column 'behavior' holds {table['behavior'][row]!r} in row {row + 1}"
        raise seqformer.InputError(f"{path}: {found}; expected one of {', '.join(map(repr, PHASES))}")
    return table


def classes_of(train: polars.DataFrame) -> list[str]:
    """The gestures, targets first, each kind in alphabetical order. Raises InputError on one that is of both."""
    kinds = train.select("gesture", "sequence_type").unique().sort("gesture")
    if kinds["gesture"].is_duplicated().any():
        both = kinds.filter(kinds["gesture"].is_duplicated())["gesture"][0]
        raise seqformer.InputError(f"train.csv: gesture {both!r} has more than one sequence_type")
    target = kinds["sequence_type"] == "Target"
    return kinds.filter(target)["gesture"].to_list() + kinds.filter(~target)["gesture"].to_list()


def distances(pixels: np.ndarray) -> np.ndarray:
    """Pixels (T, 5, 64), -1 where nothing is seen, NaN where missing -> (T, 5, 3): mean, deviation, share that see."""
    seen, there = pixels >= 0, ~np.isnan(pixels)
    count = seen.sum(axis=2)
    with np.errstate(invalid="ignore"):
        mean = np.where(seen, pixels, 0).sum(axis=2) / np.where(count, count, np.nan)
        square = np.where(seen, (pixels - mean[..., None]) ** 2, 0).sum(axis=2) / np.where(count, count, np.nan)
        share = count / np.where(there.any(axis=2), there.sum(axis=2), np.nan)
    return np.stack([mean, np.sqrt(square), share], axis=2)


def features(frames: polars.DataFrame) -> np.ndarray:
    """(T, 35) of the frames of one sequence, NaN where a sensor is missing."""
    left = frames["handedness"][0] == 0
    acceleration, rotation, heat, pixels = (
        frames.select(names).to_numpy().astype(np.float64) for names in (ACCELERATION, ROTATION, THERMOPILES, PIXELS)
    )
    seen = distances(pixels.reshape(-1, 5, 64))
    if left:
        heat, seen = heat[:, OTHER_HAND], seen[:, OTHER_HAND]
    parts = [motion(acceleration, rotation, left), heat, seen.reshape(-1, 15)]
    return np.concatenate(parts, axis=1).astype(np.float32)[-LAST:]


def sequence_row(frames: polars.DataFrame, split: str) -> dict:
    """The manifest's columns of one sequence, but for its place. Raises InputError on frames that do not agree."""
    name, columns = frames["sequence_id"][0], ["subject", *(["gesture"] if split == "train" else [])]
    for column in columns:
        if frames[column].n_unique() > 1:
            raise seqformer.InputError(f"{split}.csv: sequence {name} has more than one {column}")
    if frames["sequence_counter"].is_duplicated().any():
        raise seqformer.InputError(f"{split}.csv: sequence {name} has a sequence_counter twice")
    row = {"id": name, "split": split} | {column: frames[column][0] for column in columns}
    return row | (
        {"phase": [PHASES[behavior] for behavior in frames["behavior"].tail(LAST)]} if split == "train" else {}
    )


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet`` and ``out/sensors``; print a line. Raises InputError."""
    folder, out, rows = Path(folder), Path(out), []
    tables = {split: read_split(folder, split) for split in ("train", "test")}
    classes = classes_of(tables["train"])
    with seqformer.StoreWriter(out / "sensors", "float32") as store:
        for split, table in tables.items():
            for frames in table.partition_by("sequence_id", maintain_order=True):
                frames = frames.sort("sequence_counter")
                row, x = sequence_row(frames, split), features(frames)
                rows.append(row | {"path": "sensors", "row": store.add(x), "frames": len(x)})
        table = polars.DataFrame(rows, infer_schema_length=None)
        table = table.with_columns(polars.col("gesture").cast(polars.Enum(classes)))
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(table, out / "manifest.parquet")
    targets = tables["train"].filter(sequence_type="Target")["gesture"].n_unique()
    print(
        f"{table.height:,} sequences of {table['subject'].n_unique()} subjects; classes 0 to {targets - 1} are targets"
    )
    return out / "manifest.parquet"


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and the store.")],
) -> None:
    """Turn the CMI sensor files into a manifest and a store."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
