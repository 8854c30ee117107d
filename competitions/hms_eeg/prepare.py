"""HMS EEG -> manifest and store: ``python -m competitions.hms_eeg.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.csv``, ``train_eegs/<eeg_id>.parquet``, ``test.csv`` and ``test_eegs/``. OUT gets
``manifest.parquet`` and ``eeg/`` (10,000, 16): 50 seconds of bipolar channels, filtered, in units of 32 microvolts.
Windows of one recording overlap: of those on which the experts voted alike, the middle one is kept.

| column | meaning |
|---|---|
| votes | (6,): share of the experts for seizure, LPD, GPD, LRDA, GRDA and other |
| weight | how many experts voted |
| patient_id, expert_consensus | as in the source |
| split | train or test; test rows have no votes |
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer
from scipy import signal

import seqformer

RATE, WINDOW = 200, 10_000  # Hz, samples
ELECTRODES = (
    "Fp1", "F3", "C3", "P3", "F7", "T3", "T5", "O1", "Fz", "Cz", "Pz",
    "Fp2", "F4", "C4", "P4", "F8", "T4", "T6", "O2", "EKG",
)  # fmt: skip
# Two temporal and two parasagittal chains, each left channel followed by its right one.
MONTAGE = (
    "Fp1-F7", "Fp2-F8", "F7-T3", "F8-T4", "T3-T5", "T4-T6", "T5-O1", "T6-O2",
    "Fp1-F3", "Fp2-F4", "F3-C3", "F4-C4", "C3-P3", "C4-P4", "P3-O1", "P4-O2",
)  # fmt: skip
VOTES = ("seizure_vote", "lpd_vote", "gpd_vote", "lrda_vote", "grda_vote", "other_vote")
BAND, ORDER = (1.6, 30.0), 2  # Hz, of a Butterworth filter
LARGEST, UNIT = 1024, 32  # microvolts
COLUMNS = {"eeg_id": int, "eeg_sub_id": int, "eeg_label_offset_seconds": float, "patient_id": int}
COLUMNS |= {"expert_consensus": str} | dict.fromkeys(VOTES, int)


def read_train(path: Path) -> polars.DataFrame:
    """One row for each recording and outcome of the votes. Raises InputError on rows without a vote."""
    table = seqformer.read_table(path, COLUMNS).with_row_index("line", offset=1)
    total = table.select(VOTES).sum_horizontal()
    wrong = (total <= 0) | (table.select(VOTES).min_horizontal() < 0)
    if wrong.any():
        raise seqformer.InputError(f"{path}: the votes of row {int(wrong.arg_max()) + 1} are none, or below 0")
    middle = polars.all().sort_by("eeg_label_offset_seconds").get(polars.len() // 2)
    return table.group_by("eeg_id", *VOTES, maintain_order=True).agg(middle).select("line", *COLUMNS)


def read_eeg(path: Path) -> np.ndarray:
    """Microvolts (T, 20) of a recording, NaN where missing. Raises InputError."""
    return seqformer.read_table(path, dict.fromkeys(ELECTRODES, float | None)).to_numpy().astype(np.float64)


def bipolar(x: np.ndarray) -> np.ndarray:
    """Electrodes (T, 20) -> differences of neighbours (T, 16), a missing one 0."""
    pairs = (name.split("-") for name in MONTAGE)
    found = [x[:, ELECTRODES.index(first)] - x[:, ELECTRODES.index(second)] for first, second in pairs]
    return np.nan_to_num(np.stack(found, axis=1))


def band_passed(x: np.ndarray) -> np.ndarray:
    """x (T, C) without what is slower or faster than the band; causal, so a frame sees only those before it."""
    return signal.sosfilt(signal.butter(ORDER, BAND, "bandpass", fs=RATE, output="sos"), x, axis=0)


def window_of(eeg: np.ndarray, start: int) -> np.ndarray:
    """10,000 samples (T, 16) of a recording as the model sees them, float16."""
    x = band_passed(bipolar(eeg[start : start + WINDOW]))
    return (x.clip(-LARGEST, LARGEST) / UNIT).astype(np.float16)


def add_windows(store: seqformer.StoreWriter, folder: Path, table: polars.DataFrame) -> list[int]:
    """Their row numbers; a recording is read once for all of its rows. Raises InputError where one is too short."""
    found, last, eeg = [], None, None
    for line, name, offset in table.select("line", "eeg_id", "eeg_label_offset_seconds").iter_rows():
        path = folder / f"{name}.parquet"
        if path != last:
            last, eeg = path, read_eeg(path)
        start = round(offset * RATE)
        if start < 0 or start + WINDOW > len(eeg):
            raise seqformer.InputError(
                f"{path} has {len(eeg)} samples, and column 'eeg_label_offset_seconds' of row {line} wants {start} "
                f"to {start + WINDOW}"
            )
        found.append(store.add(window_of(eeg, start)))
    return found


def manifest_of(train: polars.DataFrame, test: polars.DataFrame) -> polars.DataFrame:
    """Both splits with the manifest's columns, but for the rows of the store."""
    total = polars.sum_horizontal(VOTES)
    shares = polars.concat_list([polars.col(name) / total for name in VOTES]).cast(polars.List(polars.Float32))
    train = train.select(
        "patient_id",
        "expert_consensus",
        id=polars.format("{}_{}", "eeg_id", "eeg_sub_id"),
        votes=shares.list.to_array(len(VOTES)),
        weight=total.cast(polars.Float32),
        split=polars.lit("train"),
    )
    test = test.select("patient_id", id=polars.col("eeg_id").cast(str), split=polars.lit("test"))
    table = polars.concat([train, test], how="diagonal")
    return table.with_columns(
        polars.col("weight").fill_null(1.0), path=polars.lit("eeg"), frames=polars.lit(WINDOW), rate=polars.lit(RATE)
    )


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet`` and ``out/eeg``; print a line. Raises InputError."""
    folder, out = Path(folder), Path(out)
    train = read_train(folder / "train.csv")
    test = seqformer.read_table(folder / "test.csv", {"eeg_id": int, "patient_id": int})
    test = test.with_row_index("line", offset=1).with_columns(eeg_label_offset_seconds=0.0)
    with seqformer.StoreWriter(out / "eeg", "float16") as store:
        rows = add_windows(store, folder / "train_eegs", train) + add_windows(store, folder / "test_eegs", test)
        table = manifest_of(train, test).with_columns(polars.Series("row", rows))
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(table, out / "manifest.parquet")
    patients = train["patient_id"].n_unique()
    print(f"{train.height:,} windows of {patients:,} patients to train on, {test.height:,} to predict")
    return out / "manifest.parquet"


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and the store.")],
) -> None:
    """Turn the EEGs of the HMS competition into a manifest and a store."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
