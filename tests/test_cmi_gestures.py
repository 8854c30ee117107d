"""CMI gestures: made-up files of the real form, prepared, learned from, predicted and submitted; faults of files."""

import shutil

import numpy as np
import polars
import pytest
import torch
from scipy.spatial.transform import Rotation

from competitions.cmi_gestures.generate import OTHERS, TARGETS, generate
from competitions.cmi_gestures.motion import GRAVITY, matrices, motion
from competitions.cmi_gestures.prepare import distances, features, prepare
from competitions.cmi_gestures.submit import submit
from seqformer import InputError, SequenceDataset, read_manifest

torch.set_num_threads(1)

SMALL = ["folds.use=0", "folds.n=2", "train.epochs=1", "train.device=cpu", "train.threads=1", "backbone.dim=8"]
SMALL += ["backbone.depth=1", "train.validate_every=1", "data.batch_frames=400"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cmi") / "raw"
    generate(folder, subjects=3, frames=(12, 20))
    return folder


@pytest.fixture(scope="module")
def manifest(raw, tmp_path_factory):
    return prepare(raw, tmp_path_factory.mktemp("cmi") / "data")


def test_motion_is_that_of_known_rotations():
    """Against SciPy's rotations: a wrist that turns by a constant step, moved by a known acceleration."""
    rng = np.random.default_rng(0)
    step = np.array([0.1, -0.2, 0.3])
    turned = Rotation.from_rotvec(rng.normal(size=3)) * Rotation.from_rotvec(np.arange(30)[:, None] * step)
    moved = rng.normal(size=(30, 3))
    x = motion(moved + turned.inv().apply([0, 0, GRAVITY]), turned.as_quat(scalar_first=True))
    np.testing.assert_allclose(matrices(turned.as_quat(scalar_first=True)), turned.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(x[:, 3:6], turned.apply([1, 0, 0]), atol=1e-9)
    np.testing.assert_allclose(x[:, 6:9], turned.apply([0, 1, 0]), atol=1e-9)
    np.testing.assert_allclose(x[:-1, 9:12], np.tile(step, (29, 1)), atol=1e-9)
    np.testing.assert_allclose(x[:, 12:15], moved, atol=1e-9)


def test_a_left_hand_moves_as_the_right_hand_it_mirrors():
    rng = np.random.default_rng(1)
    acceleration, quaternion = rng.normal(size=(20, 3)), rng.normal(size=(20, 4))
    right = motion(acceleration, quaternion)
    left = motion(acceleration * [-1, 1, 1], quaternion * [1, 1, -1, -1], left=True)
    np.testing.assert_allclose(left, right, atol=1e-12)


def test_what_is_missing_stays_missing_and_nothing_else():
    quaternion = np.array([[1.0, 0, 0, 0]] * 5)
    quaternion[2] = np.nan
    quaternion[4] = 0  # as bad as missing
    bad = np.isnan(motion(np.ones((5, 3)), quaternion))
    assert not bad[:, :3].any() and not bad[[0], :].any()
    np.testing.assert_array_equal(bad[:, 3], [False, False, True, False, True])
    np.testing.assert_array_equal(bad[:, 9], [False, True, True, True, True])  # to the next frame
    pixels = np.full((3, 5, 64), -1.0)
    pixels[1, 0, :16] = np.repeat([10.0, 30.0], 8)
    pixels[2] = np.nan
    found = distances(pixels)
    np.testing.assert_array_equal(found[1, 0], [20, 10, 0.25])
    np.testing.assert_array_equal(found[0, 0], [np.nan, np.nan, 0])
    assert np.isnan(found[2]).all()


def test_a_prepared_row_is_the_raw_one(raw, manifest):
    table, lines = read_manifest(manifest), polars.read_csv(raw / "train.csv", infer_schema_length=None)
    hands = dict(polars.read_csv(raw / "train_demographics.csv").select("subject", "handedness").iter_rows())
    assert table["gesture"].dtype.categories.to_list() == sorted(TARGETS) + sorted(OTHERS)
    assert table.height == 3 * 18 + 18 and table["gesture"].null_count() == 18
    rows = SequenceDataset(table)
    for row in (0, 20, 40):  # the second of three subjects is left-handed
        frames = lines.filter(sequence_id=table["id"][row])
        x, hand = rows.read(row).inputs["x"], hands[table["subject"][row]]
        assert (hand == 0) == (row == 20)
        np.testing.assert_allclose(x[:, 0], (1 if hand else -1) * frames["acc_x"].to_numpy(), rtol=1e-6)
        np.testing.assert_allclose(x[:, 17], frames["thm_3" if hand else "thm_5"], rtol=1e-6)
        assert frames["gesture"][0] == table["gesture"][row]
        performed = [phase == 2 for phase in table["phase"][row]]
        assert performed == (frames["phase"] == "Gesture").to_list()
    long = polars.concat([frames.with_columns(handedness=1)] * 30)
    assert features(long).shape == (200, 35)


def test_from_files_to_submission(manifest, tmp_path, program):
    given = ["configs/cmi_gestures.yaml", f"data.manifest={manifest}", *SMALL, "--root", tmp_path]
    code, _, error = program("train", *given)
    assert not code, error
    where = ["--where", "split=test"]
    code, _, error = program("predict", tmp_path / "cmi_gestures", manifest, tmp_path / "p.parquet", *where)
    assert not code, error
    submit(tmp_path / "p.parquet", manifest, tmp_path / "submission.csv")
    found, table = polars.read_csv(tmp_path / "submission.csv"), read_manifest(manifest, {"split": "test"})
    assert found["sequence_id"].to_list() == table["id"].to_list()
    best = dict(polars.read_parquet(tmp_path / "p.parquet").iter_rows())
    names = sorted(TARGETS) + sorted(OTHERS)
    assert found["gesture"].to_list() == [names[int(np.argmax(best[name]))] for name in found["sequence_id"]]


@pytest.mark.parametrize(
    "file, column, value, message",
    [
        ("train.csv", "acc_y", "up", r"train.csv: column 'acc_y' holds 'up' in row 3"),
        ("train.csv", "behavior", "Sleeps", r"train.csv: column 'behavior' holds 'Sleeps' in row 3"),
        ("test.csv", "subject", "SUBJ_9", r"test.csv: subject 'SUBJ_9' of row 3 is not in test_demographics.csv"),
        ("train.csv", "sequence_counter", "0", r"train.csv: sequence SEQ_000000000 has a sequence_counter twice"),
        ("train.csv", "sequence_type", "Aim", r"train.csv: gesture '.*' has more than one sequence_type"),
        ("train_demographics.csv", "handedness", "2", r"train_demographics.csv: expected each subject once"),
    ],
)
def test_a_faulty_file_is_one_line_and_nothing_is_written(raw, tmp_path, file, column, value, message):
    folder = shutil.copytree(raw, tmp_path / "raw")
    table = polars.read_csv(folder / file, infer_schema=False)
    values = table[column].to_list()
    values[2] = value
    table.with_columns(polars.Series(column, values)).write_csv(folder / file)
    with pytest.raises(InputError, match=message) as caught:
        prepare(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "manifest.parquet").exists()
