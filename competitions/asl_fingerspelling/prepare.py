"""ASL fingerspelling -> manifest and store: ``python -m competitions.asl_fingerspelling.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.csv``, its landmark files (``path`` in the table), ``character_to_prediction_index.json``
and, where wanted, ``supplemental_metadata.csv``. OUT gets ``manifest.parquet`` and ``points/`` (T, 130, 3), float16:
x, y and z of ``points.POINTS``, NaN where not detected, each axis moved to mean 0 and deviation 1 over the clip, and
clips of more than ``max_frames`` frames interpolated to that many.

| column | meaning |
|---|---|
| text | the phrase |
| split, participant | train or supplemental; the signer |
| file, sequence | where the clip comes from |
| fold | 0 to 3, signers apart; -1, always trained on, for supplemental clips |
| left_seen, right_seen | share of the frames in which that hand was detected |
| raw_frames | frames before interpolation |
| weight | 0 for clips too short for their phrase, which are validated and not learned from; else 1 |

The second stage has one column more, ``score``, from ``seqformer pseudo`` (see README.md).
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.asl_fingerspelling.points import COLUMNS

TABLES = {"train": "train.csv", "supplemental": "supplemental_metadata.csv"}
CHARACTERS = "character_to_prediction_index.json"
META = {"path": str, "file_id": int, "sequence_id": int, "participant_id": int, "phrase": str}
FOLDS = 4
MAX_FRAMES = 384


def read_characters(folder: Path) -> str:
    """The characters of a phrase, in the order of their numbers. Raises InputError."""
    path = folder / CHARACTERS
    try:
        numbers = json.loads(path.read_text())
        characters = "".join(sorted(numbers, key=numbers.get))
        good = sorted(numbers.values()) == list(range(len(characters)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise seqformer.InputError(f"{path} is not readable: {error}") from error
    if not good:
        raise seqformer.InputError(f"{path}: expected single characters with the numbers 0, 1, 2, ...")
    return characters


def read_clips(folder: Path, characters: str) -> polars.DataFrame:
    """All rows of the tables with their ``split`` and an ``id``, checked. Raises InputError."""
    tables = []
    for split, name in TABLES.items():
        if split == "train" or (folder / name).is_file():
            table = seqformer.read_table(folder / name, META).with_columns(split=polars.lit(split))
            for row, phrase in enumerate(table["phrase"], start=1):
                wrong = sorted(set(phrase) - set(characters))
                if wrong:
                    place = f"{folder / name}: column 'phrase' holds {phrase!r} in row {row}"
                    raise seqformer.InputError(f"{place}; no character of {CHARACTERS} is {' or '.join(wrong)!r}")
            tables.append(table)
    table = polars.concat(tables).with_columns(id=polars.format("{}-{}", "file_id", "sequence_id"))
    twice = table["id"].filter(table["id"].is_duplicated()).unique(maintain_order=True).to_list()
    if twice:
        raise seqformer.InputError(f"{folder}: file and sequence {seqformer.first_few(twice)} are there twice")
    return table


def read_landmarks(path: Path) -> dict[int, np.ndarray]:
    """{sequence_id: (T, 130, 3)} of one landmark file, frames in order. Raises InputError."""
    wanted = {"sequence_id": int, "frame": int} | dict.fromkeys(COLUMNS, float | None)
    table = seqformer.read_table(path, wanted).sort("sequence_id", "frame", maintain_order=True)
    keys = table.select("sequence_id", "frame")
    if keys.is_duplicated().any():
        sequence, frame = keys.filter(keys.is_duplicated()).row(0)
        raise seqformer.InputError(f"{path}: frame {frame} of sequence {sequence} is there twice")
    values = table.select(polars.col(COLUMNS).cast(polars.Float32)).to_numpy().reshape(table.height, 3, -1)
    names, starts = np.unique(table["sequence_id"].to_numpy(), return_index=True)
    return dict(zip(names.tolist(), np.split(values.transpose(0, 2, 1), starts[1:]), strict=True))


def standardized(x: np.ndarray) -> np.ndarray:
    """x (T, L, C), NaN where missing, with mean 0 and deviation 1 along each axis; an axis without spread is 0."""
    seen = ~np.isnan(x)
    count = seen.sum(axis=(0, 1)).clip(1)
    mean = np.where(seen, x, 0).sum(axis=(0, 1), dtype=np.float64) / count
    deviation = np.sqrt(np.where(seen, (x - mean) ** 2, 0).sum(axis=(0, 1)) / count)
    return ((x - mean) / np.maximum(deviation, 1e-6)).astype(np.float32)


def shortened(x: np.ndarray, frames: int) -> np.ndarray:
    """x (T, ...) with at most so many frames: between two along a line or, where one is missing, the nearer."""
    if len(x) <= frames:
        return x
    place = np.linspace(0, len(x) - 1, frames)
    low = place.astype(int)
    share = (place - low).astype(np.float32)[:, None, None]
    between = x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share
    return np.where(np.isnan(between), x[np.rint(place).astype(int)], between)


def folds_by_signer(participants: list[int]) -> dict[int, int]:
    """{signer: fold}: the signers with the most clips first, each to the fold that has the fewest."""
    names, counts = np.unique(participants, return_counts=True)
    sizes, folds = np.zeros(FOLDS, dtype=int), {}
    for place in np.argsort(-counts, kind="stable"):
        folds[int(names[place])] = fold = int(sizes.argmin())
        sizes[fold] += counts[place]
    return folds


def clip_row(clip: dict, x: np.ndarray, folds: dict[int, int], least: float) -> dict:
    """The manifest's columns of one clip, but for its place in the store."""
    seen = ~np.isnan(x[..., 0])
    learn = len(x) >= least * len(clip["phrase"]) and seen.any()
    train = clip["split"] == "train"
    return {
        "id": clip["id"],
        "text": clip["phrase"],
        "split": clip["split"],
        "participant": str(clip["participant_id"]),
        "file": clip["path"],
        "sequence": clip["sequence_id"],
        "fold": folds[clip["participant_id"]] if train else -1,
        "left_seen": float(seen[:, :21].any(axis=1).mean()),
        "right_seen": float(seen[:, 21:42].any(axis=1).mean()),
        "raw_frames": len(x),
        "weight": float(learn),
    }


def prepare(folder: Path, out: Path, max_frames: int = MAX_FRAMES, least: float = 1.0) -> Path:
    """Write ``out/manifest.parquet`` and ``out/points``, print a table, return the manifest. Raises InputError.

    ``least`` frames for each character of its phrase make a clip fit to be learned from.
    """
    folder, out, rows = Path(folder), Path(out), []
    clips = read_clips(folder, read_characters(folder))
    folds = folds_by_signer(clips["participant_id"].filter(clips["split"] == "train").to_list())
    faults = seqformer.Faults(folder)
    with seqformer.StoreWriter(out / "points") as writer:
        for path in clips["path"].unique(maintain_order=True):
            found = read_landmarks(folder / path)
            for clip in clips.filter(clips["path"] == path).iter_rows(named=True):
                x = found.get(clip["sequence_id"])
                if x is None:
                    faults.add("no such sequence", clip["id"], folder / path)
                    continue
                kept = shortened(standardized(x), max_frames)
                place = {"path": "points", "row": writer.add(kept), "frames": len(kept)}
                rows.append(clip_row(clip, x, folds, least) | place)
        faults.check()
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(rows, out / "manifest.parquet")
    print_summary(polars.DataFrame(rows))
    return out / "manifest.parquet"


def print_summary(table: polars.DataFrame) -> None:
    """Clips by split and fold, and those that are not learned from."""
    print("split         fold   clips  signers  frames  left seen  right seen")
    for (split, fold), some in table.sort("fold").group_by("split", "fold", maintain_order=True):
        seen = f"{some['left_seen'].mean():10.2f}  {some['right_seen'].mean():10.2f}"
        signers = some["participant"].n_unique()
        print(f"{split:12}  {fold:4}  {some.height:6,}  {signers:7}  {some['frames'].mean():6.0f} {seen}")
    short = table.filter(table["weight"] == 0)
    if short.height:
        names = [f"{name} ({frames} frames)" for name, frames in short.select("id", "raw_frames").iter_rows()]
        print(f"not learned from, too short for the phrase: {short.height:,} clips: {seqformer.first_few(names)}")


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and points/.")],
    max_frames: Annotated[int, typer.Option(help="Longer clips are interpolated to this many frames.")] = MAX_FRAMES,
    least: Annotated[float, typer.Option(help="Frames a character that a clip to learn from must have.")] = 1.0,
) -> None:
    """Turn the ASL fingerspelling files into a manifest and a store."""
    prepare(folder, out, max_frames, least)


if __name__ == "__main__":
    seqformer.run_command(main)
