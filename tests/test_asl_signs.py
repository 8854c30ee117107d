"""Signs: Kaggle's files are prepared whole or refused in one line, and the winner's model is the published one."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars
import pytest

import seqformer
from competitions.asl_signs.generate import generate, write_clip
from competitions.asl_signs.points import CHOSEN, LEFT, RIGHT, START
from competitions.asl_signs.prepare import SIGNS, prepare, read_landmarks
from seqformer.config import build_config, read_config
from seqformer.train.crossval import train_run

CONFIG = Path(__file__).parents[1] / "configs" / "asl_signs.yaml"
SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "asl_signs_sample" / "10042041.parquet"
TINY = (
    "data.batch_frames=1500 data.max_items=8 folds.n=2 folds.use=0 backbone.dim=8 backbone.depth=1 head.hidden=8 "
    "head.late_from=1 train.awp.from_epoch=1 train.epochs=2 train.precision=fp32 train.threads=1 optim.lr=1e-3 run=tiny"
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """16 clips of 3 signs by 4 signers."""
    return generate(tmp_path_factory.mktemp("signs") / "raw", clips=16, signs=3, signers=4)


@pytest.fixture(scope="module")
def prepared(raw) -> Path:
    return prepare(raw, raw.parent / "data")


def point(table: polars.DataFrame, number: int) -> np.ndarray:
    """x and y (T, 2) of one of 543 points, found by its type and number."""
    kind = [name for name, start in START.items() if start <= number][-1]
    rows = table.filter((polars.col("type") == kind) & (polars.col("landmark_index") == number - START[kind]))
    return rows.sort("frame").select("x", "y").to_numpy()


def test_each_point_has_its_mirror_and_the_config_knows_both():
    assert len(set(CHOSEN)) == 118 and len({*LEFT, *RIGHT}) == 112
    plain = read_config(CONFIG)
    assert plain["augment"][1]["pairs"] == [list(pair) for pair in zip(LEFT, RIGHT, strict=True)]
    assert CHOSEN[plain["frontend"]["reference"]] == 17  # the winner's number, of 543


def test_every_clip_is_there_with_its_points_sign_and_signer(raw, prepared):
    table, store = seqformer.read_manifest(prepared), seqformer.Store(prepared.parent / "points")
    assert store.frame_shape == (118, 2) and table["label"].dtype.categories.to_list() == ["sign_0", "sign_1", "sign_2"]
    sources = polars.read_csv(raw / "train.csv").iter_rows(named=True)
    for row, source in zip(table.iter_rows(named=True), sources, strict=True):
        assert (row["id"], row["participant"]) == (str(source["sequence_id"]), str(source["participant_id"]))
        assert row["label"] == source["sign"]
        clip, x = polars.read_parquet(raw / source["path"]), store[row["row"]]
        for place in (0, 20, 41, 81, 117):
            np.testing.assert_allclose(x[:, place], point(clip, CHOSEN[place]), atol=1e-3)
        assert row["left_seen"] == pytest.approx(np.mean(~np.isnan(x[:, 0, 0])))


def test_frames_without_any_chosen_point_are_left_out_and_counted(raw, tmp_path, capsys):
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    paths = polars.read_csv(folder / "train.csv")["path"]
    x = np.full((5, 543, 3), np.nan)
    x[[0, 3], 17] = 0.25
    x[1, 500] = 0.5  # of the pose, which is not chosen
    write_clip(x, folder / paths[0], first=80)
    write_clip(np.full((4, 543, 3), np.nan), folder / paths[1], first=0)
    table = polars.read_parquet(prepare(folder, tmp_path / "data"))
    assert table["raw_frames"][:2].to_list() == [5, 4] and table["frames"][:2].to_list() == [2, 1]
    told = capsys.readouterr().out
    assert "6 frames without any chosen point left out; no hand in 2 clips: 1000000, 1000001" in told


def change(column: str, value):
    def damage(raw: Path) -> None:
        path = next(raw.glob("train_landmark_files/*/1000000.parquet"))
        table = polars.read_parquet(path)
        first = polars.int_range(polars.len()) == 0
        table.with_columns(polars.when(first).then(polars.lit(value)).otherwise(polars.col(column)).alias(column)
                           ).write_parquet(path)  # fmt: skip

    return damage


def replace(name: str, old: str, new: str):
    return lambda raw: (raw / name).write_text((raw / name).read_text().replace(old, new, 1))


FAULTS = {
    "column 'type' holds 'hand'; expected face, left_hand, pose, right_hand": change("type", "hand"),
    "goes beyond the points of its type": change("landmark_index", -1),
    "points in each of": change("landmark_index", 1),
    "column 'sign' holds 'sing_": replace("train.csv", "sign_", "sing_"),
    "column 'sequence_id' holds 1000000 twice": replace("train.csv", ",1000001,", ",1000000,"),
    "no table at": lambda raw: next(raw.glob("train_landmark_files/*/1000000.parquet")).unlink(),
    "with the numbers 0, 1, 2": replace(SIGNS, ": 2", ": 3"),
}


@pytest.mark.parametrize("wanted", FAULTS)
def test_faulty_files_are_refused_in_one_line(raw, tmp_path, wanted):
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    FAULTS[wanted](folder)
    with pytest.raises(seqformer.InputError) as caught:
        prepare(folder, tmp_path / "data")
    assert wanted in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_the_model_has_the_published_parameters_but_for_four_things():
    config = build_config(read_config(CONFIG))
    model = seqformer.create_model(config.frontend, config.backbone, config.head | {"vocab": 250})
    found = sum(parameter.numel() for parameter in model.parameters())
    running = 2 * (
        192 + 6 * 384 + 4 * 192
    )  # means and variances of the published BatchNorms, and the dropout's counter
    published = 1_836_569 - running - 1
    ours = {
        "stem": 192,
        "depthwise": 6 * 384,
        "norms before convolutions": 6 * 2 * 192,
        "norms at the end": 2 * 2 * 192,
    }
    assert found == published + sum(ours.values()) == 1_835_608


def test_the_config_trains_a_small_model_late_dropout_and_adversary_included(prepared, tmp_path):
    assert len(CONFIG.read_text().splitlines()) <= 45
    plain = read_config(CONFIG, [*TINY.split(), f"data.manifest={prepared}"])
    plain["augment"][1]["pairs"] = plain["augment"][1]["pairs"][:2]  # which is quicker
    found = train_run(plain, tmp_path, quiet=True)
    assert found["folds"][0]["epochs"] == 2 and 0 <= found["out_of_fold"] <= 1


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the real file is not here")
def test_a_real_file(tmp_path):
    x, table = read_landmarks(SAMPLE), polars.read_parquet(SAMPLE)
    assert x.shape == (105, 543, 2) and np.isnan(x[:, 522:]).all() and not np.isnan(x[:, :468]).any()
    for number in (0, 17, 467, 468, 488, 489, 521, 542):
        np.testing.assert_allclose(x[:, number], point(table, number).astype(np.float32))
    # A face is about symmetric: the middle of a point and its mirror lies near the line from nose to chin.
    face, middle = x.mean(axis=0)[CHOSEN], x.mean(axis=0)[[1, 17], 0].mean()
    pairs = [(left, right) for left, right in zip(LEFT, RIGHT, strict=True) if left >= 42]
    halves = np.array([(face[left, 0] + face[right, 0]) / 2 - middle for left, right in pairs])
    widths = np.array([face[left, 0] - face[right, 0] for left, right in pairs])
    assert (widths > 0).all() and np.abs(halves).max() < 0.15 * widths.max()
    (tmp_path / "raw" / "train_landmark_files").mkdir(parents=True)
    shutil.copy(SAMPLE, tmp_path / "raw" / "train_landmark_files")
    row = f"train_landmark_files/{SAMPLE.name},1,10042041,unknown"
    (tmp_path / "raw" / "train.csv").write_text(f"path,participant_id,sequence_id,sign\n{row}\n")
    (tmp_path / "raw" / SIGNS).write_text(json.dumps({"unknown": 0}))
    found = polars.read_parquet(prepare(tmp_path / "raw", tmp_path / "data")).row(0, named=True)
    assert found["frames"] == 105 and found["right_seen"] == 0 and found["left_seen"] == pytest.approx(6 / 105)
