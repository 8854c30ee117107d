"""A new competition runs as it was written: made-up data, training, prediction; nothing is ever overwritten."""

import shutil
import subprocess
import sys
from pathlib import Path

import polars
import pytest

from seqformer import InputError
from seqformer.new_competition import new_competition

SMALL = ["train.epochs=2", "folds.use=0", "backbone.dim=16", "backbone.depth=1", "train.device=cpu"]


def test_a_new_competition_runs_at_once(tmp_path, program, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = program("new-competition", "my_task")
    assert not code, error
    files, commands = out.strip().split("\n\n")
    assert all(Path(path).is_file() for path in files.splitlines()) and len(files.splitlines()) == 4
    prepare, train = (line.split() for line in commands.splitlines())
    subprocess.run([sys.executable, *prepare[1:]], check=True, capture_output=True, cwd=tmp_path)
    code, _, error = program(*train[1:], *SMALL)
    assert not code, error
    manifest = "data/my_task/manifest.parquet"
    code, _, error = program("predict", "runs/my_task", manifest, "found.parquet")
    assert not code, error
    assert polars.read_parquet("found.parquet").height == 240
    config = Path("configs/my_task.yaml").read_text()
    assert len(config.splitlines()) <= 45 and "$" not in config
    for other in ("head={name: framewise, target: labels}", "head={name: ctc}"):  # what its comments offer
        changes = ["metric={name: macro_f1}"] if "framewise" in other else ["metric={name: wer}", "text={kind: words}"]
        code, _, error = program(*train[1:], *SMALL, "train.epochs=1", "run=other", other, *changes)
        assert not code, error
        shutil.rmtree("runs/other")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("run: mine\n")
    with pytest.raises(InputError, match=r"configs/mine.yaml is there already"):
        new_competition("mine", tmp_path)
    assert not (tmp_path / "competitions").exists()
    assert (tmp_path / "configs" / "mine.yaml").read_text() == "run: mine\n"


@pytest.mark.parametrize("name", ["My", "2nd", "a-b", "", "a/b", "../x"])
def test_a_name_python_cannot_import_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"cannot name a competition"):
        new_competition(name, tmp_path)
    assert not any(tmp_path.iterdir())
