"""ASL signs -> manifest and store: ``python -m competitions.asl_signs.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.csv``, its landmark files (``path`` in the table: one clip each, a row for each point of
each frame) and ``sign_to_prediction_index_map.json``. OUT gets ``manifest.parquet`` and ``points/`` (T, 118, 2),
float16: x and y of ``points.CHOSEN`` as shares of the picture, NaN where not detected, without the frames in which none
of them was. Columns: ``label``, the sign, a class with the competition's number; ``participant``; ``raw_frames``,
frames of the file; ``left_seen`` and ``right_seen``, shares of the frames kept in which that hand was detected.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.asl_signs.points import ALL_POINTS, CHOSEN, START

SIGNS = "sign_to_prediction_index_map.json"


def read_signs(folder: Path) -> list[str]:
    """The signs in the order of their numbers. Raises InputError."""
    path = folder / SIGNS
    try:
        numbers = json.loads(path.read_text())
        signs = sorted(numbers, key=numbers.get)
        good = [numbers[sign] for sign in signs] == list(range(len(signs)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise seqformer.InputError(f"{path} is not readable: {error}") from error
    if not good:
        raise seqformer.InputError(f"{path}: expected signs with the numbers 0, 1, 2, ...")
    return signs


def read_clips(folder: Path, signs: list[str]) -> polars.DataFrame:
    """The rows of ``train.csv``, checked. Raises InputError."""
    path = folder / "train.csv"
    table = seqformer.read_table(path, {"path": str, "participant_id": int, "sequence_id": int, "sign": str})
    for row, sign in enumerate(table["sign"], start=1):
        if sign not in signs:
            raise seqformer.InputError(f"{path}: column 'sign' holds {sign!r} in row {row}, which {SIGNS} does not")
    twice = table["sequence_id"].filter(table["sequence_id"].is_duplicated()).unique(maintain_order=True).to_list()
    if twice:
        raise seqformer.InputError(f"{path}: column 'sequence_id' holds {seqformer.first_few(twice)} twice")
    return table


def read_landmarks(path: Path) -> np.ndarray:
    """x and y (T, 543, 2) of one file, float32, NaN where not detected. Raises InputError."""
    columns = {"frame": int, "type": str, "landmark_index": int, "x": float | None, "y": float | None}
    table = seqformer.read_table(path, columns)
    unknown = set(table["type"].unique()) - set(START)
    if unknown:
        raise seqformer.InputError(f"{path}: column 'type' holds {min(unknown)!r}; expected {', '.join(START)}")
    _, frame = np.unique(table["frame"].to_numpy(), return_inverse=True)
    point = (
        table["type"].replace_strict(START, return_dtype=polars.Int64).to_numpy() + table["landmark_index"].to_numpy()
    )
    frames = int(frame.max()) + 1
    if point.min() < 0 or point.max() >= ALL_POINTS:
        raise seqformer.InputError(f"{path}: column 'landmark_index' goes beyond the points of its type")
    place = frame * ALL_POINTS + point
    if len(place) != frames * ALL_POINTS or len(np.unique(place)) != len(place):
        wanted = f"each of {ALL_POINTS} points in each of {frames} frames"
        raise seqformer.InputError(f"{path} has {len(place)} rows; expected {wanted}, once")
    x = np.empty((frames * ALL_POINTS, 2), dtype=np.float32)
    x[place] = table.select(polars.col("x", "y").cast(polars.Float32).fill_null(float("nan"))).to_numpy()
    return x.reshape(frames, ALL_POINTS, 2)


def chosen_points(x: np.ndarray) -> np.ndarray:
    """x (T, 543, 2) -> (T', 118, 2), without frames in which none of them was detected; the first, where all are."""
    x = x[:, CHOSEN]
    seen = ~np.isnan(x).all(axis=(1, 2))
    return x[seen] if seen.any() else x[:1]


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet`` and ``out/points``, print a table, return the manifest. Raises InputError."""
    folder, out, rows = Path(folder), Path(out), []
    signs = read_signs(folder)
    clips = read_clips(folder, signs)
    with seqformer.StoreWriter(out / "points") as writer:
        for path, participant, sequence, sign in clips.iter_rows():
            raw = read_landmarks(folder / path)
            x = chosen_points(raw)
            seen = ~np.isnan(x[..., 0])
            place = {"id": str(sequence), "path": "points", "row": writer.add(x), "frames": len(x)}
            facts = {"label": sign, "participant": str(participant), "raw_frames": len(raw)}
            hands = {"left_seen": seen[:, :21].any(axis=1).mean(), "right_seen": seen[:, 21:42].any(axis=1).mean()}
            rows.append(place | facts | {name: float(share) for name, share in hands.items()})
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    table = polars.DataFrame(rows).with_columns(polars.col("label").cast(polars.Enum(signs)))
    seqformer.write_manifest(table, out / "manifest.parquet")
    print_summary(table)
    return out / "manifest.parquet"


def print_summary(table: polars.DataFrame) -> None:
    """Clips, frames and hands of each signer."""
    print("signer       clips  signs  frames  left seen  right seen")
    for (signer,), some in table.sort("participant").group_by("participant", maintain_order=True):
        seen = f"{some['left_seen'].mean():9.2f}  {some['right_seen'].mean():10.2f}"
        print(f"{signer:9}  {some.height:7,}  {some['label'].n_unique():5}  {some['frames'].mean():6.0f}  {seen}")
    removed = table["raw_frames"].sum() - table["frames"].sum()
    blind = table.filter((table["left_seen"] == 0) & (table["right_seen"] == 0))["id"].to_list()
    print(f"{removed:,} frames without any chosen point left out; no hand in {len(blind):,} clips", end="")
    print(f": {seqformer.first_few(blind)}" if blind else "")


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and points/.")],
) -> None:
    """Turn the ASL signs files into a manifest and a store."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
