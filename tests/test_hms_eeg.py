"""HMS EEG: made-up files of the real form, prepared, learned from, predicted and submitted; faults of files."""

import shutil

import numpy as np
import polars
import pytest
import torch

from competitions.hms_eeg.generate import generate
from competitions.hms_eeg.prepare import ELECTRODES, MONTAGE, VOTES, WINDOW, band_passed, bipolar, prepare
from competitions.hms_eeg.submit import submit
from seqformer import InputError, SequenceDataset, read_manifest
from seqformer.config import read_config

torch.set_num_threads(1)

SMALL = ["folds.use=0", "train.epochs=1", "train.device=cpu", "train.threads=1", "data.batch_frames=40000"]
SMALL += ["backbone.dim=8", "backbone.depth=1", "backbone.heads=1", "backbone.kernel=3"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hms") / "raw"
    generate(folder, patients=6, recordings=1)
    return folder


@pytest.fixture(scope="module")
def manifest(raw, tmp_path_factory):
    return prepare(raw, tmp_path_factory.mktemp("hms") / "data")


def test_a_prepared_row_is_the_middle_window_and_its_votes(raw, manifest):
    table, lines = read_manifest(manifest), polars.read_csv(raw / "train.csv")
    assert lines.height == 18 and table["split"].value_counts(sort=True)["count"].to_list() == [6, 6]
    line = lines.row(4, named=True)  # of three windows with one outcome, at 0, 6 and 12 seconds
    eeg = polars.read_parquet(raw / "train_eegs" / f"{line['eeg_id']}.parquet")
    example, row = SequenceDataset(table).read(1), table.row(1, named=True)
    x = bipolar(eeg.to_numpy()[1200 : 1200 + WINDOW])
    np.testing.assert_allclose(example.inputs["x"], (band_passed(x) / 32).clip(-32, 32), rtol=1e-3, atol=1e-4)
    votes = np.array([line[name] for name in VOTES])
    assert row["id"] == f"{line['eeg_id']}_1" and row["weight"] == votes.sum()
    np.testing.assert_allclose(row["votes"], votes / votes.sum(), rtol=1e-6)
    assert table["votes"].null_count() == 6


def test_channels_are_differences_and_the_band_is_kept():
    rng, at = np.random.default_rng(0), ELECTRODES.index
    x = rng.standard_normal((50, 20))
    x[3, at("T3")] = np.nan
    found = bipolar(x)
    assert found[3, MONTAGE.index("F7-T3")] == found[3, MONTAGE.index("T3-T5")] == 0
    np.testing.assert_array_equal(found[:, MONTAGE.index("P4-O2")], x[:, at("P4")] - x[:, at("O2")])
    seconds = np.arange(WINDOW) / 200
    gain = [np.abs(band_passed(np.sin(2 * np.pi * hertz * seconds)[:, None])[5000:]).max() for hertz in (0.3, 8, 80)]
    assert gain[0] < 0.1 < 0.95 < gain[1] < 1.05 and gain[2] < 0.1


def test_the_config_swaps_left_for_right():
    parts = {part["name"]: part for part in read_config("configs/hms_eeg.yaml")["augment"]}
    sides = str.maketrans("12345678", "21436587")  # odd numbers are left
    swapped = [name.replace("Fp", "fp").translate(sides).replace("fp", "Fp") for name in MONTAGE]
    assert [MONTAGE[place] for place in parts["swap_channels"]["permutation"]] == swapped


def test_from_files_to_submission(raw, manifest, tmp_path, program):
    code, _, error = program("train", "configs/hms_eeg.yaml", f"data.manifest={manifest}", *SMALL, "--root", tmp_path)
    assert not code, error
    where = ["--where", "split=test"]
    code, _, error = program("predict", tmp_path / "hms_eeg", manifest, tmp_path / "p.parquet", *where)
    assert not code, error
    submit(tmp_path / "p.parquet", raw / "sample_submission.csv", tmp_path / "submission.csv")
    found, sample = (polars.read_csv(path) for path in (tmp_path / "submission.csv", raw / "sample_submission.csv"))
    assert found.columns == ["eeg_id", *VOTES] and found["eeg_id"].equals(sample["eeg_id"])
    np.testing.assert_allclose(found.select(VOTES).to_numpy().sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("gpd_vote", "many", r"train.csv: column 'gpd_vote' holds 'many' in row 5"),
        ("patient_id", None, r"train.csv: column 'patient_id' is empty in row 5"),
        ("eeg_id", "77", r"no table at .*77.parquet"),
        ("eeg_label_offset_seconds", "30", r"parquet has 12400 samples, and .* of row 1 wants 6000 to 16000"),
        ("other_vote", "-99", r"train.csv: the votes of row 5 are none"),
    ],
)
def test_a_faulty_row_is_one_line_and_nothing_is_written(raw, tmp_path, column, value, message):
    folder = shutil.copytree(raw, tmp_path / "raw")
    table = polars.read_csv(raw / "train.csv", infer_schema=False)
    values = table[column].to_list()
    values[4] = value
    table = table.with_columns(polars.Series(column, values, dtype=polars.String))
    table = table[4:5] if value == "30" else table  # of several windows, the middle one is read
    table.write_csv(folder / "train.csv")
    with pytest.raises(InputError, match=message) as caught:
        prepare(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "manifest.parquet").exists()


def test_a_recording_without_an_electrode_says_so(raw, tmp_path):
    folder = shutil.copytree(raw, tmp_path / "raw")
    path = next(iter(sorted((folder / "train_eegs").iterdir())))
    polars.read_parquet(path).drop("T5").write_parquet(path)
    with pytest.raises(InputError, match=f"{path.name} has no column 'T5'"):
        prepare(folder, tmp_path / "out")
