"""The report counts labelled frames only, averages runs, and agrees with scikit-learn."""

import numpy as np
import polars
import pytest
from sklearn.metrics import accuracy_score, f1_score

import seqformer
from competitions.hapt.report import confusion, f1_scores, print_report, read_runs


def test_scores_agree_with_scikit_learn_and_unlabelled_frames_do_not_count():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((500, 12)), rng.integers(-1, 11, 500)  # class 11 is never true, but predicted
    table, found, wanted = confusion(scores, truth), scores.argmax(axis=1)[truth >= 0], truth[truth >= 0]
    assert table.sum() == len(wanted) < 500
    assert table.trace() / table.sum() == pytest.approx(accuracy_score(wanted, found))
    np.testing.assert_allclose(f1_scores(table), f1_score(wanted, found, average=None, labels=range(12)))
    assert np.isnan(f1_scores(confusion(np.eye(12)[[3, 3]], np.array([3, 3])))).sum() == 11


def test_runs_are_averaged_by_recording(tmp_path, capsys):
    eye, ids = np.eye(12), ["exp01_user01", "exp02_user07"]
    for run, classes in {"a": (0, 1), "b": (2, 1)}.items():
        (tmp_path / run).mkdir()
        strong = 2.0 if run == "b" else 1.0
        scores = [[(strong * eye[c]).tolist()] * 4 for c in classes]
        rows = {"id": ids, "prediction": scores, "truth": [[2, 2, -1, 0], [1, 1, -1, -1]]}
        polars.DataFrame(rows)[:: -1 if run == "b" else 1].write_parquet(tmp_path / run / "oof.parquet")
    print_report(read_runs([tmp_path / "a", tmp_path / "b"]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["user01", "0.6667", "0.4000", "3"], ["user07", "1.0000", "1.0000", "2"], ["all", "0.8000", "0.6000", "5"]
    ]  # fmt: skip
    polars.read_parquet(tmp_path / "a" / "oof.parquet")[:1].write_parquet(tmp_path / "a" / "oof.parquet")
    with pytest.raises(seqformer.InputError, match="exp02_user07 is predicted by 1 of 2 runs"):
        read_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(seqformer.InputError, match="no finished fold in"):
        read_runs([tmp_path / "c"])
