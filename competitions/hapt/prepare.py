"""UCI HAPT, activity and postural transitions -> manifest and store: ``python -m competitions.hapt.prepare FOLDER OUT``.

FOLDER is the archive's raw layout, or two parquet files of the same signals:

| layout | files |
|---|---|
| raw, 50 Hz | ``RawData/acc_exp01_user01.txt`` and ``gyro_...`` (x y z of a sample), ``RawData/labels.txt`` (experiment, user, activity 1-12, first and last sample, counted from 1) |
| parquet, 25 Hz | ``train.parquet``, ``test.parquet``: experiment, user, n_frames, acc_x ... gyro_z in thousandths, label 0-12 |

OUT gets ``manifest.parquet`` and ``signals/`` (float32, acceleration in g and turning rate in rad/s). Raw samples are
averaged in pairs to 25 Hz, unless ``--rate 50``; a pair has the label of its first sample. Signals are turned into the
frame of the body (see ``posture.py``), unless ``--no-align``. One row is one recording;
``labels`` are 12 classes, and -1, not scored, where nobody has labelled. Users 2, 6, 11, 23 are the split ``test``.
"""  # noqa: E501  (a table row is one line)

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.hapt.posture import body_frame

AXES = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
CLASSES = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying", "stand_to_sit", "sit_to_stand")
CLASSES += ("sit_to_lie", "lie_to_sit", "stand_to_lie", "lie_to_stand")
RAW_RATE, TEST_USERS = 50, (2, 6, 11, 23)
NAME = re.compile(r"acc_exp(?P<experiment>\d+)_user(?P<user>\d+)\.txt")
COLUMNS = {"experiment", "user", "n_frames", "label", *AXES}


def prepare(folder: Path, out: Path, rate: int = 25, align: bool = True) -> Path:
    """Check the recordings, write ``out/manifest.parquet`` and ``out/signals``, print a table, return the manifest.

    Raises InputError, with ``out`` as it was, naming the file and the column, line or row at fault.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and not out.is_dir():
        raise seqformer.InputError(f"{out} is a file; the prepared data need a folder")
    recordings = read_recordings(folder, rate)
    manifest, rows = out / "manifest.parquet", []
    with seqformer.StoreWriter(out / "signals", dtype="float32") as writer:
        for recording in recordings:
            signals = recording.pop("signals")
            signals = body_frame(signals, rate) if align else signals
            place = {"path": "signals", "row": writer.add(signals), "frames": len(signals), "rate": rate}
            labels = recording.pop("label").astype(np.int8) - 1
            rows.append({"id": recording.pop("id"), **place, **recording, "labels": labels})
        manifest.unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(rows, manifest)
    print_summary(rows)
    return manifest


def read_recordings(folder: Path, rate: int) -> list[dict]:
    """Recordings as dicts: id, experiment, user, split, signals (T, 6), label (T,). Raises InputError."""
    if not folder.is_dir():
        raise seqformer.InputError(f"{folder} is not a folder; give one with RawData, or with train and test.parquet")
    raw = next((place for place in (folder / "RawData", folder) if (place / "labels.txt").is_file()), None)
    if raw is not None:
        if rate not in (RAW_RATE, RAW_RATE // 2):
            raise seqformer.InputError(f"rate is {rate}; the raw files give {RAW_RATE} or {RAW_RATE // 2} Hz")
        return read_raw(raw, halve=rate < RAW_RATE)
    if rate != RAW_RATE // 2:
        raise seqformer.InputError(f"rate is {rate}; the parquet files hold {RAW_RATE // 2} Hz")
    return [row for split in ("train", "test") for row in read_parquet(folder / f"{split}.parquet", split)]


def read_parquet(path: Path, split: str) -> list[dict]:
    """Recordings of one parquet file. Raises InputError naming column and row."""
    import polars

    if not path.is_file():
        raise seqformer.InputError(f"{path} is missing; give a folder with RawData, or with train and test.parquet")
    try:
        table = polars.read_parquet(path)
    except Exception as error:  # polars raises many kinds; each means an unreadable file
        raise seqformer.InputError(f"{path} is not a readable parquet file: {' '.join(str(error).split())}") from error
    missing = sorted(COLUMNS - set(table.columns))
    if missing:
        raise seqformer.InputError(f"{path}: column {missing[0]!r} is missing; found {', '.join(table.columns)}")
    recordings = []
    for row in table.iter_rows(named=True):
        where = f"{path}: experiment {row['experiment']}, user {row['user']}"
        columns = {name: checked(row[name], row["n_frames"], f"{where}: column {name!r}") for name in (*AXES, "label")}
        signals = np.stack([columns[name] for name in AXES], axis=1) / np.float32(1000)
        facts = {"id": identity(row["experiment"], row["user"])} | {key: row[key] for key in ("experiment", "user")}
        check_labels(columns["label"], f"{where}: column 'label'")
        recordings.append(facts | {"split": split, "signals": signals, "label": columns["label"]})
    return recordings


def checked(values: list | None, frames: int, where: str) -> np.ndarray:
    """One list of numbers (T,) as float32. Raises InputError."""
    array = np.asarray(values if values is not None else [], dtype=np.float32)
    if len(array) != frames:
        raise seqformer.InputError(f"{where} has {len(array)} values, n_frames says {frames}")
    if not np.isfinite(array).all():
        raise seqformer.InputError(f"{where} is empty in frame {int(np.flatnonzero(~np.isfinite(array))[0])}")
    return array


def check_labels(label: np.ndarray, where: str) -> None:
    bad = np.flatnonzero((label < 0) | (label > len(CLASSES)))
    if len(bad):
        raise seqformer.InputError(f"{where} holds {label[bad[0]]:g} in frame {bad[0]}; expected 0 to {len(CLASSES)}")


def read_raw(folder: Path, halve: bool) -> list[dict]:
    """Recordings of the archive's text files. Raises InputError naming file and line."""
    spans, recordings = read_spans(folder / "labels.txt"), []
    for path in sorted(folder.glob("acc_*.txt")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise seqformer.InputError(f"{path}: expected a name such as acc_exp01_user01.txt")
        experiment, user = int(match["experiment"]), int(match["user"])
        other = path.with_name(path.name.replace("acc", "gyro"))
        acc, gyro = (read_numbers(place, 3) for place in (path, other))
        if len(acc) != len(gyro):
            raise seqformer.InputError(f"{other} has {len(gyro)} samples, {path.name} {len(acc)}")
        signals, label = np.concatenate([acc, gyro], axis=1), np.zeros(len(acc))
        for line, (activity, first, last) in spans.pop((experiment, user), {}).items():
            if not 1 <= first <= last <= len(label) or not 1 <= activity <= len(CLASSES):
                raise seqformer.InputError(
                    f"{folder / 'labels.txt'}, line {line}: activity {activity}, samples {first} to {last}; "
                    f"expected 1 to {len(CLASSES)}, and samples within 1 to {len(label)}"
                )
            label[first - 1 : last] = activity
        if halve:
            pairs = len(label) // 2
            signals, label = signals[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1), label[: 2 * pairs : 2]
        split = "test" if user in TEST_USERS else "train"
        facts = {"id": identity(experiment, user), "experiment": experiment, "user": user, "split": split}
        recordings.append(facts | {"signals": signals.astype(np.float32), "label": label})
    if spans or not recordings:
        experiment, user = next(iter(spans), (1, 1))
        raise seqformer.InputError(f"{folder} has no acc_exp{experiment:02d}_user{user:02d}.txt")
    return recordings


def read_spans(path: Path) -> dict[tuple[int, int], dict[int, tuple[int, int, int]]]:
    """{(experiment, user): {line number: (activity, first sample, last sample)}} of ``labels.txt``."""
    spans: dict[tuple[int, int], dict] = {}
    for line, (experiment, user, *span) in enumerate(read_numbers(path, 5).astype(int).tolist(), 1):
        spans.setdefault((experiment, user), {})[line] = tuple(span)
    return spans


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """The numbers (lines, columns) of a text file. Raises InputError naming the line."""
    if not path.is_file():
        raise seqformer.InputError(f"{path} is missing")
    rows = []
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = [float(word) for word in text.split()]
        except ValueError:
            row = []
        if len(row) != columns or not np.isfinite(row).all():
            raise seqformer.InputError(f"{path}, line {line}: found {text[:40]!r}; expected {columns} numbers")
        rows.append(row)
    return np.asarray(rows).reshape(-1, columns)


def identity(experiment: int, user: int) -> str:
    return f"exp{experiment:02d}_user{user:02d}"


def print_summary(rows: list[dict]) -> None:
    """One table: split, recordings, users, hours, and the share of frames that is labelled."""
    print(f"{'split':6}  recordings  users  hours  labelled")
    for split in dict.fromkeys(row["split"] for row in rows):
        some = [row for row in rows if row["split"] == split]
        labels, users = np.concatenate([row["labels"] for row in some]), {row["user"] for row in some}
        hours = sum(row["frames"] / row["rate"] for row in some) / 3600
        print(f"{split:6}  {len(some):10}  {len(users):5}  {hours:5.2f}  {(labels >= 0).mean():8.1%}")


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with RawData, or with train.parquet and test.parquet.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and signals/.")],
    rate: Annotated[int, typer.Option(help="Frames per second: 25, or 50 of the raw files.")] = 25,
    align: Annotated[bool, typer.Option(help="Turn the signals into the frame of the body.")] = True,
) -> None:
    """Turn the HAPT recordings into a manifest and a store of signals."""
    prepare(folder, out, rate, align)


if __name__ == "__main__":
    seqformer.run_command(main)
