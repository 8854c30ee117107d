"""HAPT recordings are the same from either layout: pairs averaged, labels per frame, users as groups."""

import sys
from pathlib import Path

import numpy as np
import polars
import pytest

import seqformer
from competitions.hapt.posture import body_frame
from competitions.hapt.prepare import AXES, main, prepare

SHARED = Path(__file__).parents[2] / "shared" / "data" / "hapt"
RECORDINGS = {(1, 1): 40, (2, 1): 31, (3, 2): 24}  # (experiment, user): samples at 50 Hz; user 2 is in the test split
SPANS = [(1, 1, 5, 3, 12), (1, 1, 12, 13, 14), (3, 2, 1, 1, 24)]  # samples counted from 1, the last one included


def raw_signals(experiment: int, samples: int) -> np.ndarray:
    """(samples, 6) in thousandths, so that both layouts hold them exactly."""
    return np.random.default_rng(experiment).integers(-2000, 2000, (samples, 6)) / 1000


def raw_labels(key: tuple[int, int]) -> np.ndarray:
    """Brute force from the definition."""
    spans = [span for span in SPANS if span[:2] == key]
    return np.array([sum(s[2] for s in spans if s[3] <= n <= s[4]) for n in range(1, RECORDINGS[key] + 1)])


def write_raw(folder: Path) -> Path:
    raw = folder / "RawData"
    raw.mkdir(parents=True)
    for (experiment, user), samples in RECORDINGS.items():
        x, ending = raw_signals(experiment, samples), f"exp{experiment:02d}_user{user:02d}.txt"
        np.savetxt(raw / f"acc_{ending}", x[:, :3])
        np.savetxt(raw / f"gyro_{ending}", x[:, 3:])
    np.savetxt(raw / "labels.txt", SPANS, fmt="%d")
    return folder


def write_tables(folder: Path) -> Path:
    folder.mkdir()
    rows = {"train": [], "test": []}
    for (experiment, user), samples in RECORDINGS.items():
        x = np.rint(raw_signals(experiment, samples) * 1000).astype(np.int16)
        facts = {"experiment": experiment, "user": user, "n_frames": samples}
        values = dict(zip(AXES, x.T.tolist(), strict=True)) | {"label": raw_labels((experiment, user)).tolist()}
        rows["test" if user == 2 else "train"].append(facts | values)
    for split, some in rows.items():
        polars.DataFrame(some).write_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("layout, rate", [("raw", 50), ("raw", 25), ("parquet", 25)])
def test_signals_labels_users_and_split(tmp_path, layout, rate):
    source = write_raw(tmp_path / "data") if layout == "raw" else write_tables(tmp_path / "data")
    table = seqformer.read_manifest(prepare(source, tmp_path / "out", rate, align=False))
    store = seqformer.Store(tmp_path / "out" / "signals")
    assert table["id"].to_list() == ["exp01_user01", "exp02_user01", "exp03_user02"]
    assert table["user"].to_list() == [1, 1, 2] and table["split"].to_list() == ["train", "train", "test"]
    assert table["rate"].to_list() == [rate] * 3
    for row, key in zip(table.to_dicts(), RECORDINGS, strict=True):
        x, labels = raw_signals(key[0], RECORDINGS[key]), raw_labels(key) - 1
        if (layout, rate) == ("raw", 25):
            x = np.array([(x[n] + x[n + 1]) / 2 for n in range(0, len(x) - 1, 2)])
            labels = labels[: 2 * len(x) : 2]
        np.testing.assert_allclose(store[row["row"]], x, rtol=1e-6)
        assert row["labels"] == labels.tolist()


def spoil(path: Path, **columns) -> None:
    polars.read_parquet(path).with_columns(**columns).write_parquet(path)


def rename(path: Path, **columns: str) -> None:
    polars.read_parquet(path).rename(columns).write_parquet(path)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


RAW_FAULTS = [
    (lambda f: append(f / "labels.txt", "1 1 13 1 2\n"), "labels.txt, line 4: activity 13, samples 1 to 2; expected"),
    (lambda f: append(f / "labels.txt", "1 1 5 30 41\n"), "labels.txt, line 4: activity 5, samples 30 to 41"),
    (lambda f: append(f / "labels.txt", "9 9 1 1 2\n"), "has no acc_exp09_user09.txt"),
    (lambda f: append(f / "labels.txt", "1 1 1\n"), "labels.txt, line 4: found '1 1 1'; expected 5 numbers"),
    (lambda f: append(f / "acc_exp01_user01.txt", "1 2 nan\n"), "acc_exp01_user01.txt, line 41: found '1 2 nan'"),
    (lambda f: append(f / "acc_exp01_user01.txt", "1 2 3\n"), "gyro_exp01_user01.txt has 40 samples, acc_exp01"),
    (lambda f: (f / "gyro_exp01_user01.txt").unlink(), "gyro_exp01_user01.txt is missing"),
    (lambda f: (f / "acc_exp01_user01.txt").rename(f / "acc_1.txt"), "acc_1.txt: expected a name such as"),
]
TABLE_FAULTS = [
    (lambda f: (f / "test.parquet").unlink(), "test.parquet is missing"),
    (lambda f: (f / "test.parquet").write_text("x"), "test.parquet is not a readable parquet file"),
    (
        lambda f: polars.read_parquet(f / "test.parquet").drop("acc_z").write_parquet(f / "test.parquet"),
        "'acc_z' is mi",
    ),
    (lambda f: spoil(f / "test.parquet", n_frames=9), "user 2: column 'acc_x' has 24 values, n_frames says 9"),
    (
        lambda f: spoil(f / "test.parquet", label=polars.lit([13] * 24)),
        "column 'label' holds 13 in frame 0; expected 0",
    ),
    (lambda f: spoil(f / "test.parquet", gyro_x=polars.lit([None] * 24)), "column 'gyro_x' is empty in frame 0"),
]


@pytest.mark.parametrize("damage, wanted", RAW_FAULTS + TABLE_FAULTS)
def test_bad_recordings_are_refused_whole(tmp_path, monkeypatch, capsys, damage, wanted):
    raw = (damage, wanted) in RAW_FAULTS
    damage(write_raw(tmp_path / "data") / "RawData" if raw else write_tables(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / "data"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        seqformer.run_command(main)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared copy of the data set is not here")
def test_real_recordings(tmp_path):
    table = seqformer.read_manifest(prepare(SHARED, tmp_path / "out"))
    labels = {split: np.concatenate(table.filter(split=split)["labels"].to_list()) for split in ("train", "test")}
    assert table.height == 52 and table["user"].n_unique() == 26
    shares = {split: np.mean(found < 0) for split, found in labels.items()}
    assert abs(np.mean(np.concatenate(list(labels.values())) < 0) - 0.27) < 0.005 and shares["train"] < shares["test"]


def test_the_frame_of_the_body_is_the_same_however_the_phone_is_turned():
    rng, frames = np.random.default_rng(0), 1000
    walking, lying = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    acc = np.where(np.arange(frames)[:, None] < 700, walking + rng.normal(0, 0.3, (frames, 3)), lying)
    x = np.concatenate([acc, rng.normal(0, 1, (frames, 3))], axis=1)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))  # a phone can be turned, not mirrored
    found = body_frame(x, 25), body_frame((x.reshape(-1, 2, 3) @ turn).reshape(x.shape), 25)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0][750:, :3].mean(axis=0), lying, atol=0.05)
    np.testing.assert_allclose(found[0], x, atol=0.3)


def test_a_recording_that_never_moves_or_lies_is_turned_upright():
    x = np.zeros((100, 6)) + [0, 0.6, 0.8, 0, 0, 1]
    found = body_frame(x, 25)
    np.testing.assert_allclose(found[:, :3], np.zeros((100, 3)) + [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:], axis=1), 1, rtol=1e-6)
