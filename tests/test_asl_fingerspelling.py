"""Fingerspelling: Kaggle's files are prepared whole or refused in one line; each config trains and submits."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars
import pytest

import seqformer
from competitions.asl_fingerspelling.generate import generate, write_landmarks
from competitions.asl_fingerspelling.points import ALL_COLUMNS, COLUMNS, LEFT, POINTS, RIGHT
from competitions.asl_fingerspelling.prepare import prepare, shortened
from competitions.asl_fingerspelling.submit import DUMMY, submit, with_dummy
from seqformer.config import build_config, read_config
from seqformer.metrics import cer
from seqformer.oof import read_out_of_fold
from seqformer.predict import TrainedRun
from seqformer.pseudo import own_targets
from seqformer.train.crossval import train_run

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ["asl_fingerspelling_stage1", "asl_fingerspelling_stage2", "asl_fingerspelling_ctc"]
SMALL = [
    *("data.batch_frames=1500", "train.accumulate=1", "train.precision=fp32", "train.threads=1"),
    *("frontend.width=64", "frontend.conv=null", "backbone.dim=64", "backbone.depth=2", "backbone.kernel=15"),
    *("backbone.dropout=0", "backbone.attention_dropout=0", "optim.name=muon", "optim.lr=0.01", "optim.warmup=0.1"),
]
LEARNED = [
    ("asl_fingerspelling_ctc", ["head.middle.at=0", "train.epochs=6"]),
    ("asl_fingerspelling_stage1", ["train.epochs=16"]),
]
TINY = [*SMALL, "frontend.width=8", "backbone.dim=8", "backbone.depth=1", "train.epochs=1"]


def tiny(name: str, manifest: Path, *more: str) -> dict:
    """A config with a model of some weights, for some steps; of the mirrored points two pairs, which is quicker."""
    own = {"asl_fingerspelling_ctc": ["head.middle.at=0"], "asl_fingerspelling_stage1": ["head.max_units=20"]}
    own["asl_fingerspelling_stage2"] = ["head.text.max_units=20", "head.reversed.max_units=20"]
    plain = read_config(CONFIGS / f"{name}.yaml", [*TINY, *own[name], f"data.manifest={manifest}", *more])
    plain["augment"][0]["pairs"] = plain["augment"][0]["pairs"][:2]
    return plain


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """24 clips of 8 signers, and 4 supplemental ones."""
    return generate(tmp_path_factory.mktemp("asl") / "raw", clips=24, supplemental=4, signers=8)


@pytest.fixture(scope="module")
def prepared(raw) -> Path:
    return prepare(raw, raw.parent / "data")


@pytest.fixture(scope="module")
def scored(prepared) -> Path:
    """The manifest with the column that the first stage makes for the second."""
    train_run(tiny(STAGES[0], prepared, "run=first", "folds.use=0"), prepared.parent, quiet=True)
    table = own_targets(
        read_out_of_fold(prepared.parent / "first"), polars.read_parquet(prepared), "score", metric=True
    )
    seqformer.write_manifest(table, prepared.with_name("stage2.parquet"))
    return prepared.with_name("stage2.parquet")


def damaged(raw: Path, folder: Path) -> Path:
    return Path(shutil.copytree(raw, folder))


def test_the_points_are_the_files_and_each_has_its_mirror():
    assert len(set(POINTS)) == 130 and set(COLUMNS) <= set(ALL_COLUMNS) and len(ALL_COLUMNS) == 1629
    parts = {"left_hand": range(21), "right_hand": range(21, 42), "pose": range(42, 54), "face": range(54, 130)}
    assert all(POINTS[place].startswith(part) for part, places in parts.items() for place in places)
    assert len({*LEFT, *RIGHT}) == len(LEFT) + len(RIGHT) == 124
    for config in STAGES:
        assert len((CONFIGS / f"{config}.yaml").read_text().splitlines()) <= 45
        plain = read_config(CONFIGS / f"{config}.yaml")
        build_config(plain)
        assert plain["augment"][0]["pairs"] == [list(pair) for pair in zip(LEFT, RIGHT, strict=True)]


def test_every_clip_is_there_standardised_with_its_phrase_and_signer(raw, prepared):
    table, rows = polars.read_parquet(prepared), {}
    for name in ("train.csv", "supplemental_metadata.csv"):
        for row in polars.read_csv(raw / name, schema_overrides={"phrase": str}).iter_rows(named=True):
            rows[f"{row['file_id']}-{row['sequence_id']}"] = row
    store = seqformer.Store(prepared.parent / "points")
    assert sorted(table["id"]) == sorted(rows) and store.frame_shape == (130, 3)
    for row in table.iter_rows(named=True):
        source = rows[row["id"]]
        assert (row["text"], row["participant"]) == (source["phrase"], str(source["participant_id"]))
        clip = polars.read_parquet(raw / source["path"]).filter(polars.col("sequence_id") == source["sequence_id"])
        x = np.stack([clip[column].to_numpy() for column in COLUMNS], axis=1).reshape(len(clip), 3, 130)
        axes = [(x[:, axis] - np.nanmean(x[:, axis])) / np.nanstd(x[:, axis]) for axis in range(3)]
        np.testing.assert_allclose(store[row["row"]], np.stack(axes, axis=-1), atol=4e-3)
        assert row["frames"] == row["raw_frames"] == len(clip) and row["weight"] == 1
        assert row["right_seen"] == pytest.approx(1 - clip["x_right_hand_0"].null_count() / len(clip))
    folds = table.filter(polars.col("split") == "train").group_by("participant").agg(polars.col("fold").n_unique())
    assert (folds["fold"] == 1).all() and set(table["fold"]) == {-1, 0, 1, 2, 3}
    assert (table.filter(polars.col("split") == "supplemental")["fold"] == -1).all()


def test_clips_too_short_for_their_phrase_are_told_and_long_ones_interpolated(raw, tmp_path, capsys):
    table = polars.read_parquet(prepare(raw, tmp_path / "data", max_frames=30, least=8.0))
    assert table["frames"].max() == 30 < table["raw_frames"].max()
    short = table["raw_frames"] < 8 * table["text"].str.len_chars()
    assert table["weight"].to_list() == [0.0 if one else 1.0 for one in short] and 0 < short.sum() < len(table)
    assert f"too short for the phrase: {short.sum()} clips: {table['id'].filter(short)[0]} (" in capsys.readouterr().out
    x = np.array([[0.0], [np.nan], [4.0], [6.0], [8.0]], np.float32)[:, None]
    np.testing.assert_allclose(shortened(x, 3).ravel(), [0, 4, 8])
    np.testing.assert_allclose(shortened(x, 4).ravel(), [0, np.nan, 2 / 3 * 6 + 1 / 3 * 4, 8], rtol=1e-6)


def twice(raw: Path) -> None:
    path = raw / "train_landmarks" / "1000000.parquet"
    table = polars.read_parquet(path)
    polars.concat([table, table.head(1)]).write_parquet(path)


def write(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


def edit(name: str, old: str, new: str):
    return lambda raw: write(raw / name, lambda text: text.replace(old, new, 1))


FAULTS = {
    "no column 'phrase'": edit("train.csv", "phrase", "phrases"),
    "in row 24; no character of": lambda raw: write(raw / "train.csv", lambda text: text.rstrip() + "É"),
    "no such sequence (1): 1000000-77 (train_landmarks/1000000.parquet)": edit("train.csv", ",10000,", ",77,"),
    "1000000-10000 are there twice": edit("train.csv", ",10001,", ",10000,"),
    "frame 0 of sequence 10000 is there twice": twice,
    "no table at": lambda raw: (raw / "train_landmarks" / "1000000.parquet").unlink(),
    "with the numbers 0, 1, 2": edit("character_to_prediction_index.json", ": 58", ": 60"),
    "is not readable": lambda raw: (raw / "character_to_prediction_index.json").write_text("{"),
}


@pytest.mark.parametrize("wanted", FAULTS)
def test_faulty_files_are_refused_in_one_line(raw, tmp_path, wanted):
    folder = damaged(raw, tmp_path / "raw")
    FAULTS[wanted](folder)
    with pytest.raises(seqformer.InputError) as caught:
        prepare(folder, tmp_path / "data")
    assert wanted in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", STAGES)
def test_each_config_trains_predicts_and_submits(scored, tmp_path, name):
    found = train_run(tiny(name, scored, "folds.use=1", "run=tiny"), tmp_path, quiet=True)
    assert np.isfinite(found["out_of_fold"])
    seqformer.save_pretrained(TrainedRun(tmp_path / "tiny").fold("1"), tmp_path / "saved")
    answers = polars.read_csv(submit(tmp_path / "saved", scored, tmp_path / "out"), schema_overrides={"phrase": str})
    table = polars.read_parquet(scored).select(sequence_id="sequence")
    assert answers.columns == ["sequence_id", "phrase"] and answers.select("sequence_id").equals(table)
    assert json.loads((tmp_path / "out" / "inference_args.json").read_text()) == {"selected_columns": COLUMNS}


def test_the_second_stage_learns_scores_out_of_fold_and_of_no_other_clip(scored):
    table, folder = polars.read_parquet(scored), scored.parent
    oof = polars.read_parquet(folder / "first" / "oof.parquet")
    wanted = {row["id"]: 1 - cer([row["prediction"]], [row["truth"]]) for row in oof.iter_rows(named=True)}
    scored = table.filter(table["score"].is_not_null())
    assert dict(scored.select("id", "score").iter_rows()) == pytest.approx(wanted)
    assert scored["id"].to_list() == table["id"].filter(table["fold"] == 0).to_list()


def test_the_dummy_phrase_stands_for_short_and_doubtful_clips():
    assert with_dummy(["a", "b", "c"], [14, 15, 16]) == [DUMMY, "b", "c"]
    assert with_dummy(["a", "b", "c"], [50, 50, 14], [0.14, 0.15, 1.0]) == [DUMMY, "b", DUMMY]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, more", LEARNED)
def test_made_up_phrases_are_read_of_signers_never_seen(tmp_path, name, more):
    manifest = prepare(generate(tmp_path / "raw", clips=1200), tmp_path / "data")
    alone = ["augment=[]", "sampling=null", "train.ema=0.98", "folds.use=0"]  # no supplemental clips of those signers
    plain = read_config(CONFIGS / f"{name}.yaml", [*SMALL, *alone, *more, f"data.manifest={manifest}"])
    found = train_run(plain, tmp_path / "runs", quiet=True)
    print(name, found)
    assert found["out_of_fold"] >= 0.95


def test_files_keep_missing_values_as_null(tmp_path):
    values = np.full((3, 1629), np.nan, np.float32)
    values[1] = 1
    write_landmarks([(5, values)], tmp_path / "made" / "file.parquet")
    table = polars.read_parquet(tmp_path / "made" / "file.parquet")
    assert table.columns == ["frame", *ALL_COLUMNS, "sequence_id"]
    assert table["x_face_0"].to_list() == [None, 1, None] and table["frame"].to_list() == [0, 1, 2]
