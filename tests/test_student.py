"""Noisy students: labels of each fold's own teacher, chosen as brute force does, a loop that goes on."""

import math
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from scipy import stats
from small_runs import small, write_rows

from seqformer.config import write_config
from seqformer.data.manifest import read_manifest, write_manifest
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError
from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
from seqformer.lm.ngram import read_arpa
from seqformer.metrics import cer
from seqformer.predict import TrainedRun
from seqformer.speech import student as student_file
from seqformer.speech.selection import balanced, divergence, in_pace, length_scores
from seqformer.speech.student import Choice, choose, decode_rows, label_generation, train_generations, training_rows
from seqformer.train.crossval import train_run

torch.set_num_threads(1)
ALL = Choice(threshold=(-math.inf,), pace=1e6, balance=1.0)


def test_scores_are_deviations_from_the_line_of_length():
    rng = np.random.default_rng(0)
    units = rng.integers(0, 30, 200)
    scores = -0.7 * units - 2 + np.sqrt(units) * rng.standard_normal(200)
    found, some = length_scores(scores, units), units > 0
    line = stats.linregress(units[some], scores[some])
    left = (scores - line.slope * units - line.intercept)[some] / np.sqrt(units[some])
    assert np.allclose(found[some], left / left.std()) and np.isneginf(found[~some]).all()
    assert np.allclose(length_scores([-3.0, -5.0, -7.0], [1, 2, 3]), 0)  # all on a line
    assert np.allclose(length_scores([-3.0, -5.0], [4, 4]), [1, -1])  # no slope to see
    assert np.isneginf(length_scores([-1.0], [0])).all()


def brute_force_balance(counts: np.ndarray, wanted: np.ndarray, least: int) -> list[bool]:
    keep = list(range(len(counts)))

    def gap(rows: list[int]) -> float:
        found = sum((counts[row] for row in rows), np.ones(counts.shape[1]))
        return float(stats.entropy(wanted, found))

    while len(keep) > least:
        rest = min(([one for one in keep if one != row] for row in keep), key=gap)
        if gap(rest) >= gap(keep):
            break
        keep = rest
    return [row in keep for row in range(len(counts))]


def test_balance_leaves_out_what_brute_force_would():
    rng, moved = np.random.default_rng(1), 0
    for least in (0, 6, 15, 25):
        counts, wanted = rng.integers(0, 5, (25, 6)), rng.integers(0, 50, 6)
        found = balanced(counts, wanted, least)
        assert found.tolist() == brute_force_balance(counts, wanted, least)
        moved += (~found).sum()
    assert moved > 25


def test_balance_of_many_rows_comes_nearer_and_keeps_enough():
    rng = np.random.default_rng(2)
    counts, wanted = rng.poisson([5, 1, 1, 1], (1000, 4)), np.full(4, 10)
    counts[::2] = counts[::2][:, ::-1]
    counts[:, 0] += rng.poisson(3, 1000)
    keep = balanced(counts, wanted, 700)
    gaps = [divergence(wanted, counts[rows].sum(axis=0)) for rows in (keep, keep | True)]
    assert keep.sum() >= 700 and gaps[0] < 0.8 * gaps[1]
    assert divergence(wanted, counts[:700].sum(axis=0)) > gaps[0]


def test_pace_is_of_the_usual_ones_widened():
    assert in_pace(np.array([0.9, 1.0, 5.9, 6.1]), np.array([2.0, 3.0]), 2.0).tolist() == [False, True, True, False]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[dict, Path, Path]:
    """A trained teacher of two folds, its config, unlabelled rows with their truth; not to be changed."""
    root = tmp_path_factory.mktemp("student")
    tables = {"row": range(16), "new": range(30, 42)}
    for prefix, numbers in tables.items():
        table = read_manifest(write_rows(root, numbers, prefix))
        texts = polars.col("label") + polars.when(polars.col("frames") > 9).then(polars.lit("ab")).otherwise(
            polars.lit("")
        )
        write_manifest(table.drop("level").with_columns(text=texts), root / f"{prefix}s.parquet")
    plain = small(
        root / "rows.parquet", run="tiny", head={"name": "ctc"}, text={"kind": "chars"}, metric={"name": "cer"}
    )
    plain |= {"folds": {"kind": "kfold", "n": 2, "seed": 5}, "student": [{"optim.lr": 0.001}]}
    write_arpa(train_kneser_ney(["aab", "bb", "c", "abc", "cca"], 2, "chars"), root / "lm.arpa")
    train_run({key: value for key, value in plain.items() if key != "student"}, root, quiet=True)
    return plain, root, root / "news.parquet"


def loop(world, root: Path, generations: int = 1, choice: Choice = ALL) -> list[dict]:
    lm = world[1] / "lm.arpa"
    return train_generations(
        world[0], root, world[2], generations, BeamDecoder(read_arpa(lm), beam=2), choice, lm, True
    )


def test_generations_follow_each_other_and_an_interrupted_loop_goes_on(world, monkeypatch, program, tmp_path):
    """Stopped after the labels of one fold: these stay as they are; finished, nothing is done again."""
    plain, root, new = world
    real, asked = student_file.decode_rows, []

    def interrupted(run, name, *others):
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(run, name, *others)

    monkeypatch.setattr(student_file, "decode_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop(world, root)
    found = loop(world, root, 2)
    assert asked == ["0", "1", "1", "0", "1"]  # fold 0 of generation 1 was labelled before
    truth = dict(read_manifest(new).select("id", "text").iter_rows())
    for number in (1, 2):
        rows = polars.read_parquet(root / f"tiny_g{number}" / "pseudo.parquet")
        facts = found[number]
        teacher = "tiny" if number == 1 else "tiny_g1"
        assert set(rows["labelled_by"]) <= {f"{teacher}/fold0", f"{teacher}/fold1"} and facts["labels"] == 24
        assert facts["kept"] == rows.height == 24 - facts["pace"] > 0 and facts["score"] == 0
        assert facts["error_kept"] == cer(rows["text"].to_list(), [truth[row] for row in rows["labelled_id"]])
        config = TrainedRun(root / f"tiny_g{number}").config
        assert config.optim.lr == 0.001 and not config.student and config.run == f"tiny_g{number}"
    assert loop(world, root, 2) == found and len(asked) == 5
    with pytest.raises(InputError, match="tiny_g1 was begun with other settings: pace;"):
        loop(world, root, choice=Choice((-math.inf,), 2.0, 1.0))
    (tmp_path / "config.yaml").write_text(write_config(plain))
    least = ["--threshold=-inf", "--pace", 1e6, "--balance", 1, "--beam", 2, "--lm", root / "lm.arpa", "--root", root]
    code, out, err = program("student", tmp_path / "config.yaml", new, "--generations", 2, *least)
    assert code == 0 and len(asked) == 5, err
    assert f"{found[2]['error_kept']:.4f}" in out and f"{found[2]['out_of_fold']:.4f}" in out


def test_the_truth_of_unlabelled_rows_changes_nothing_but_the_report(world, tmp_path):
    _, root, new = world
    run, table = TrainedRun(root / "tiny"), read_manifest(new)
    blind = [decode_rows(run, "0", rows, BeamDecoder(beam=2)) for rows in (table, table.drop("text"))]
    assert blind[0].equals(blind[1])
    fused = decode_rows(run, "0", table, BeamDecoder(read_arpa(root / "lm.arpa"), beam=2))
    assert (fused["score"] < blind[0]["score"]).all()  # the log-probability of the language model is in it


def test_what_is_usual_is_of_the_rows_that_the_fold_was_trained_on(world):
    _, root, new = world
    run, table = TrainedRun(root / "tiny"), read_manifest(new)
    table = table.with_columns(frames=polars.int_range(1, table.height + 1) * 2)
    folds = polars.read_parquet(root / "tiny" / "folds.parquet")
    for name in ("0", "1"):
        assert set(training_rows(run, name)["id"]) == set(folds.filter(polars.col("fold") != int(name))["id"])
    texts = ["a"] * (table.height - 2) + ["", "abc" * 9]
    units = polars.Series([[1] * len(text) for text in texts], dtype=polars.List(polars.Int64))
    labels = polars.DataFrame({"id": table["id"], "text": texts, "score": -1.0, "units": units})
    found = choose(run, "0", table, labels, {"threshold": -9.0, "pace": 1.0, "balance": 1.0})
    own = training_rows(run, "0")
    usual = (own["text"].str.len_chars() / own["frames"]).to_numpy()
    reasons = [None if usual.min() <= 1 / frames <= usual.max() else "pace" for frames in table["frames"][:-2]]
    assert found["left_out"].to_list() == [*reasons, "pace", "pace"] and 0 < reasons.count(None) < len(reasons)


def test_a_label_of_a_model_that_was_trained_on_the_fold_is_refused(world, tmp_path):
    """Planted: rows the teacher was trained on, the labels of two folds exchanged, the audio of a validated row."""
    plain, root, new = world
    teacher, table = TrainedRun(root / "tiny"), read_manifest(new).drop("text")
    settings = {"threshold": -math.inf, "pace": 1e6, "balance": 1.0}
    own = read_manifest(plain["data"]["manifest"]).drop("text")
    with pytest.raises(InputError, match="8 rows were trained on by fold0"):
        label_generation(teacher, own, {}, BeamDecoder(beam=2), settings, tmp_path / "own")
    folds = polars.read_parquet(root / "tiny" / "folds.parquet")
    validated = own.filter(own["id"].is_in(folds.filter(polars.col("fold") == 0)["id"].implode()))
    copied = validated.with_columns(id="copy" + polars.col("id"))
    label_generation(teacher, copied, {}, BeamDecoder(beam=2), settings, tmp_path / "copied")
    label_generation(teacher, table, {}, BeamDecoder(beam=2), settings, tmp_path / "swapped")
    labels = polars.read_parquet(tmp_path / "swapped" / "pseudo.parquet")
    swap = polars.col("labelled_fold").replace({"0": "1", "1": "0"})
    labels.with_columns(labelled_fold=swap).write_parquet(tmp_path / "swapped" / "pseudo.parquet")
    for name, refusal in (("swapped", "labels of fold 0 are of a model trained on other rows"),
                          ("copied", "rows read the files of rows that fold 0 is validated on")):  # fmt: skip
        student = {key: value for key, value in plain.items() if key != "student"}
        student["data"] = plain["data"] | {"pseudo": [str(tmp_path / name / "pseudo.parquet")]}
        with pytest.raises(InputError, match=refusal):
            train_run(student, tmp_path / "runs", quiet=True)
