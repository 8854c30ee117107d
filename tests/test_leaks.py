"""P3, planted: every way we know to let a validation row reach what is scored on it is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars
import pytest
from small_runs import LEVELS, ROWS, small, train, write_rows

from seqformer import InputError, read_manifest, write_manifest
from seqformer.blend import blend_runs
from seqformer.config import write_config
from seqformer.data.provenance import pseudo_rows
from seqformer.ensemble import Ensemble, read_blend
from seqformer.oof import read_out_of_fold
from seqformer.predict import TrainedRun
from seqformer.pseudo import label_rows, own_targets
from seqformer.train.crossval import train_run

GROUPS = {"kind": "group", "by": "speaker", "n": 3, "seed": 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """Finished runs and the tables they were trained on; not to be changed."""
    root = tmp_path_factory.mktemp("leaks")
    rows, new = write_rows(root), write_rows(root, range(50, 60), "new")
    fewer = root / "fewer.parquet"
    read_manifest(rows).head(ROWS - 2).write_parquet(fewer)
    other_folds, one = {"kind": "kfold", "n": 3, "seed": 9}, {"kind": "kfold", "n": 3, "seed": 5, "use": 0}
    runs = {
        "a": small(rows, run="a"),
        "b": small(rows, run="b", seed=3),
        "other": small(rows, run="other", folds=other_folds),
        "fewer": small(fewer, run="fewer"),
        "full": small(rows, run="full", folds=one | {"use": "full"}),
        "one": small(rows, run="one", folds=one),
        "groups": small(rows, run="groups", folds=GROUPS),
    }
    found = SimpleNamespace(rows=rows, **{name: train(root, plain) for name, plain in runs.items()})
    found.table, found.new = read_manifest(rows), read_manifest(new).drop("label")
    found.labels = label_rows(TrainedRun(found.a), found.new)[0]
    return found


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / run.name))


def changed(run: Path, to: Path, change: Callable, name: str = "oof.parquet") -> Path:
    """A copy of a run with one of its tables changed."""
    found = copied(run, to)
    change(polars.read_parquet(found / name)).write_parquet(found / name)
    return found


def study(world, to: Path, labels: polars.DataFrame | None = None, table: polars.DataFrame | None = None, **changes):
    """Train a run on pseudo-labelled rows, or on a changed manifest."""
    plain = small(world.rows, run="student", **changes)
    if labels is not None:
        labels.write_parquet(to / "labels.parquet")
        plain["data"] = plain["data"] | {"pseudo": [str(to / "labels.parquet")]}
    if table is not None:
        table.write_parquet(to / "table.parquet")
        plain["data"] = plain["data"] | {"manifest": str(to / "table.parquet")}
    train_run(plain, to / "runs", quiet=True)


def own(world, run: str = "a") -> polars.DataFrame:
    return own_targets(read_out_of_fold(getattr(world, run)), world.table, "score", metric=True)


def swap(first: str, second: str) -> polars.Expr:
    """The column labelled_fold, two folds exchanged."""
    column = polars.col("labelled_fold")
    return column.replace({first: second, second: first})


def fold_of(world, name: str) -> polars.DataFrame:
    """The rows that a fold of run a is validated on."""
    ids = polars.read_parquet(world.a / "oof.parquet").filter(polars.col("fold") == name)["id"]
    return world.table.filter(world.table["id"].is_in(ids.implode()))


def reads_a_validated_row(world) -> polars.DataFrame:
    """Another id, but the array of a row that fold 0 is validated on."""
    first = fold_of(world, "0").row(0, named=True)
    mine = (world.labels["labelled_fold"] == "0") & (world.labels["labelled_id"] == "new50")
    place = {
        name: polars.when(mine).then(polars.lit(first[name])).otherwise(polars.col(name)) for name in ("path", "row")
    }
    return world.labels.with_columns(**place, frames=polars.when(mine).then(first["frames"]).otherwise("frames"))


def forget_fold(run: Path) -> Path:
    (run / "fold2" / "done.json").unlink()
    return run


def move_both(run: Path) -> Path:
    """Rows of folds 0 and 1 exchanged in all files, so that each is predicted by a fold that was trained on it."""
    exchange = polars.col("fold").cast(polars.String).replace({"0": "1", "1": "0"})
    for name, kind in (("folds.parquet", polars.Int64), ("oof.parquet", polars.String)):
        table = polars.read_parquet(run / name)
        table.with_columns(exchange.cast(kind)).write_parquet(run / name)
    return run


def blended(run: Path, world, to: Path) -> Path:
    blend_runs([world.b, run], to / "blend.json", equal=True)
    return to / "blend.json"


def blend_then_retrain(world, to: Path):
    run = copied(world.a, to)
    path = blended(run, world, to)
    assert read_blend(path).weights == [0.5, 0.5]
    shutil.rmtree(run)
    shutil.copytree(world.b, run)
    read_blend(path)


def blend_then_refold(world, to: Path):
    path = blended(copied(world.a, to), world, to)
    facts = json.loads(path.read_text())
    facts["runs"][0]["trained_on"]["fold0"] = "0" * 64
    path.write_text(json.dumps(facts))
    read_blend(path)


def swapped_truth(table: polars.DataFrame) -> polars.DataFrame:
    return table.with_columns(truth=polars.col("truth").reverse())


# (what is planted, how, the line that refuses it)
LEAKS = {
    # pseudo-labels, as they are made
    "label the rows trained on": (
        lambda w, to: label_rows(TrainedRun(w.a), w.table.drop("label")), "16 rows were trained on by fold0"),
    "one trained row among new ones": (
        lambda w, to: label_rows(TrainedRun(w.a), polars.concat([w.new, w.table.drop("label")[:1]])),
        r"1 rows were trained on by fold\d of .*: row00"),
    "label with a fold full what it was trained on": (
        lambda w, to: label_rows(TrainedRun(w.full), w.table.drop("label")), "24 rows were trained on by full"),
    "label by a run with changed folds": (
        lambda w, to: label_rows(TrainedRun(move_both(copied(w.a, to))), w.new),
        "on other rows than folds.parquet says"),
    # pseudo-labels, as they are trained on
    "labels of folds 0 and 1 exchanged": (
        lambda w, to: study(w, to, w.labels.with_columns(swap("0", "1"))),
        "10 labels of fold 0 are of a model trained"),
    "labels of one fold for all": (
        lambda w, to: study(w, to, w.labels.with_columns(labelled_fold=polars.lit("0"))),
        "20 labels of fold 0 are of a"),
    "labels of another split": (
        lambda w, to: study(w, to, label_rows(TrainedRun(w.other), w.new)[0]), r"10 labels of fold 0 .*other/fold0"),
    "labels of another data set": (
        lambda w, to: study(w, to, label_rows(TrainedRun(w.fewer), w.new)[0]), r"10 labels of fold 0 .*fewer/fold0"),
    "labels of a fold full": (
        lambda w, to: study(w, to, label_rows(TrainedRun(w.full), w.new)[0]), "has no row labelled by fold 0"),
    "a student with another split": (
        lambda w, to: study(w, to, w.labels, folds={"kind": "kfold", "n": 3, "seed": 9}),
        "10 labels of fold 0 are of a"),
    "a student with another data set": (
        lambda w, to: study(w, to, w.labels, w.table.head(ROWS - 2)), "10 labels of fold 0 are of a model"),
    "no proof": (lambda w, to: study(w, to, w.labels.drop("labelled_on")), "column 'labelled_on' is missing"),
    "an empty proof": (
        lambda w, to: study(w, to, w.labels.with_columns(
            labelled_on=polars.when(polars.col("labelled_id") != "new50").then("labelled_on"))),
        "column 'labelled_on' is empty in some rows"),
    "a validated row, labelled by its own fold": (
        lambda w, to: study(w, to, w.labels.with_columns(labelled_id=polars.lit(fold_of(w, "0")["id"][0]))),
        "10 rows are rows that fold 0 is validated on"),
    "a validated row under another id": (
        lambda w, to: study(w, to, reads_a_validated_row(w)),
        "1 rows read the files of rows that fold 0 is validated on"),
    "the id of a row twice": (
        lambda w, to: study(w, to, w.labels.with_columns(
            id=polars.col("id").replace({"new50@fold0": fold_of(w, "1")["id"][0]}))),
        r"ids are there twice: row\d+$"),
    "a speaker that is validated": (
        lambda w, to: study(w, to, label_rows(TrainedRun(w.groups), w.new)[0].with_columns(speaker=polars.lit("row3")),
                            folds=GROUPS),
        r"10 rows have the speaker of rows that fold \d is validated on"),
    # targets of a second stage
    "second stage with another split": (
        lambda w, to: study(w, to, table=own(w, "other")),
        "column 'score' is not out of fold for .* validated in fold 0"),
    "second stage on a row that every fold trains on": (
        lambda w, to: study(w, to, table=own(w).with_columns(half=polars.Series([-1] * 6 + [0, 1] * 9)),
                            folds={"kind": "column", "by": "half"}),
        "column 'score' is not out of fold for 6 rows always trained on"),
    "second stage without a proof": (
        lambda w, to: study(w, to, table=own(w).with_columns(score_labelled_on=polars.lit(None, dtype=polars.String))),
        "column 'score' is not out of fold"),
    "second stage by the model of one fold": (
        lambda w, to: study(w, to, table=own(w).with_columns(polars.col("score_labelled_on").first())),
        "column 'score' is not out of fold for 8 rows"),
    "second stage of a fold full": (lambda w, to: own(w, "full"), "has a fold full only"),
    # blends
    "blend of another split": (
        lambda w, to: blend_runs([w.a, w.other], to / "b.json"), r"have different folds: \d+ rows moved"),
    "blend of other rows": (
        lambda w, to: blend_runs([w.a, w.fewer], to / "b.json"),
        "predict different rows: 2 are in one only: row22, row23"),
    "blend with a fold full": (lambda w, to: blend_runs([w.full, w.a], to / "b.json"), "has a fold full only"),
    "weights scored on the rows they were fitted on": (
        lambda w, to: blend_runs([w.one, w.one], to / "b.json"), "only fold 0 was validated"),
    "predictions by folds that knew the rows": (
        lambda w, to: blend_runs([w.a, changed(w.b, to, lambda t: t.with_columns(polars.col("fold").reverse()))],
                                 to / "b.json"),
        r"\d+ rows were trained on by the fold that predicts them"),
    "the same with folds to fit": (
        lambda w, to: blend_runs([w.a, move_both(copied(w.b, to))], to / "b.json"),
        "on other rows than folds.parquet says"),
    "a row twice": (
        lambda w, to: blend_runs([w.a, changed(w.b, to, lambda t: polars.concat([t, t[:1]]))], to / "b.json"),
        r"1 rows are there twice"),
    "a row that is none": (
        lambda w, to: blend_runs([w.a, changed(w.b, to, lambda t: t.with_columns(
            polars.col("id").replace({"row00": "x"})))], to / "b.json"), "1 ids are no rows of the run: x"),
    "a row left out": (
        lambda w, to: blend_runs([w.a, changed(w.b, to, lambda t: t[1:])], to / "b.json"),
        "1 validated rows are missing"),
    "another truth": (
        lambda w, to: blend_runs([w.a, changed(w.b, to, swapped_truth)], to / "b.json"), "against different truths"),
    "a fold that is not finished": (
        lambda w, to: blend_runs([w.a, forget_fold(copied(w.b, to))], to / "b.json"), "fold 2 is not finished"),
    "a run that changed after the blend": (blend_then_retrain, "changed after .*blend.json was made; blend again"),
    "a fold that changed after the blend": (blend_then_refold, "changed after .*blend.json was made; blend again"),
    "an ensemble scored on what one run was trained on": (
        lambda w, to: Ensemble([TrainedRun(w.one), TrainedRun(w.a)]).score(fold_of(w, "0")), "8 rows were trained on"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_refused(world, tmp_path, name):
    plant, wanted = LEAKS[name]
    with pytest.raises(InputError, match=wanted) as error:
        plant(world, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "b.json").exists()


def test_what_is_no_leak_goes_through(world, tmp_path):
    """The same labels and targets, not tampered with; each fold trains on the labels of its own model alone."""
    study(world, tmp_path, world.labels, own(world))
    labels = {row["id"]: row["label"] for row in world.labels.iter_rows(named=True)}
    assert set(labels.values()) <= set("abc") and len(labels) == 30
    blend_runs([world.a, world.b], tmp_path / "b.json")
    one = TrainedRun(world.one)
    held_out = fold_of(world, "0")
    found, low, grouped = label_rows(one, held_out.drop("label"))  # by the fold that never saw them
    assert found.height == held_out.height and (low, grouped) == (0, 0)


def test_labels_are_those_of_one_fold_alone(world, tmp_path):
    run = TrainedRun(world.a)
    for folder in run.names:
        predictions = run.predict_fold(folder, world.new)
        rows = world.labels.filter(world.labels["labelled_by"] == f"a/{folder}")
        assert rows["labelled_id"].to_list() == world.new["id"].to_list()
        for row in rows.iter_rows(named=True):
            values = predictions[row["labelled_id"]]
            assert row["label"] == "abc"[values.argmax()] and row["confidence"] == pytest.approx(values.max())
            assert row["weight"] == row["confidence"]
    kept, low, _ = label_rows(run, world.new, threshold=0.4)
    wanted = world.labels.filter(world.labels["confidence"] >= 0.4)
    assert kept["id"].to_list() == wanted["id"].to_list() and low == 30 - wanted.height


def test_labels_of_a_validated_group_are_left_out(world):
    new = world.new.with_columns(speaker=polars.Series(["row3"] * 4 + ["new"] * 6))
    labels, _, grouped = label_rows(TrainedRun(world.groups), new)
    assert grouped == 4 and labels.height == 26


def test_own_targets_are_the_metric_of_each_row(world, tmp_path):
    oof = {row["id"]: row for row in polars.read_parquet(world.a / "oof.parquet").iter_rows(named=True)}
    for row in own(world).iter_rows(named=True):
        found = oof[row["id"]]
        assert row["score"] == float(max(range(3), key=found["prediction"].__getitem__) == found["truth"])
    write_manifest(own(world), tmp_path / "own.parquet")
    assert own_targets(read_out_of_fold(world.a), world.table)["oof"].dtype == polars.Array(polars.Float32, 3)


def test_the_program_labels_and_trains(world, program, tmp_path):
    """From one run's labels to the next run; its folder remembers the labels and is refused with others."""
    world.new.write_parquet(tmp_path / "new.parquet")
    labels = tmp_path / "labels.parquet"
    code, out, err = program("pseudo", world.a, tmp_path / "new.parquet", labels, "--threshold", "0.34")
    assert code == 0 and "labels of 10 rows by 3 folds" in out, err
    plain = small(world.rows, run="next")
    plain["data"] = plain["data"] | {"pseudo": [str(labels)]}
    (tmp_path / "c.yaml").write_text(write_config(plain))
    code, out, err = program("train", tmp_path / "c.yaml", "--root", tmp_path)
    count = polars.read_parquet(labels).filter(polars.col("labelled_fold") == "0").height
    assert code == 0 and f"fold 0: {16 + count} examples to train on, 8 rows to validate on" in out, err
    assert set(polars.read_parquet(tmp_path / "next" / "oof.parquet")["id"]) == set(world.table["id"])
    read_manifest(labels)[:-1].write_parquet(labels)
    code, _, err = program("train", tmp_path / "c.yaml", "--root", tmp_path)
    assert code == 2 and "was made with another" in err and err.count("\n") == 1


def test_the_program_makes_targets_of_a_second_stage(world, program, tmp_path):
    code, out, err = program("pseudo", world.a, world.rows, tmp_path / "own.parquet", "--metric", "--column", "sure")
    assert code == 0 and "24 rows with out-of-fold targets" in out, err
    heads = {"classify": {"name": "classify"}, "sure": {"name": "classify", "target": "right", "weight": 0.1}}
    table = read_manifest(tmp_path / "own.parquet").rename({"sure_labelled_on": "right_labelled_on"})
    study(world, tmp_path, table=table.with_columns(right=polars.col("sure") > 0), head=heads)
    for options in (("--own", "--column", "label"), ()):
        code, _, err = program("pseudo", world.a, world.rows, tmp_path / "x.parquet", *options)
        assert code == 2 and "the rows have a column 'label' already" in err and err.count("\n") == 1
        assert not (tmp_path / "x.parquet").exists()


def test_a_fit_of_all_rows_shares_a_weight_among_all_labels_of_a_row(world):
    """Three folds label each of ten rows, in two manifests; the second lacks weights."""
    first = world.labels.filter(polars.col("labelled_fold") != "2").with_columns(weight=polars.lit(3.0))
    second = world.labels.filter(polars.col("labelled_fold") == "2").drop("weight", strict=False)
    rows = pseudo_rows([("first", first), ("second", second)], world.table, np.zeros(ROWS), "full", "label")
    assert len(rows) == 30 and set(zip(rows["labelled_fold"], rows["weight"], strict=True)) == {
        ("0", 1.0), ("1", 1.0), ("2", 1 / 3)
    }  # fmt: skip


def test_values_have_no_threshold(world, tmp_path):
    """The spread over folds, which could be one, would let a fold's validated rows choose its labels."""
    run = TrainedRun(train(tmp_path, small(world.rows, run="levels", **LEVELS)))
    new = world.new.drop("level")
    with pytest.raises(InputError, match="--threshold is for probabilities of classes; the target 'level' has none"):
        label_rows(run, new, threshold=0.5)
    labels, _, _ = label_rows(run, new)
    assert labels["level"].dtype == polars.List(polars.Float64)
    assert (labels["level"].list.len() == labels["frames"]).all() and labels["confidence"].null_count() == 30
    study(world, tmp_path, labels, **LEVELS)
