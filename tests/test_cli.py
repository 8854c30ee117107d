"""The command line: bad input is one line and exit code 2 with nothing written; good input goes from audio to text."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile
import torch
from conftest import DENSE, RATE, TINY, change, poisoned, write_corpus

import seqformer
from seqformer.checkpoint import FILES, load_weights
from seqformer.config import write_config
from seqformer.metrics import cer
from seqformer.predict import TrainedRun
from seqformer.train.crossval import train_run
from seqformer.train.log import RunLog
from seqformer.train.loop import MOST_SKIPPED, FoldTrainer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refused(program):
    """The one line on standard error with which the program refuses its arguments."""

    def run(*arguments) -> str:
        code, _, err = program(*arguments)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err

    return run


@pytest.fixture
def config(tiny, tmp_path):
    """``config(section__key=value)`` -> a YAML file of the tiny run, quick to train."""

    def write(**changes) -> Path:
        quick = {"train__epochs": 1, "augment": [], "run": "tiny"}
        path = tmp_path / "config.yaml"
        path.write_text(write_config(tiny(**(quick | changes))))
        return path

    return write


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus) -> Path:
    """The folder of a run with both folds finished; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    plain = change(TINY, data__manifest=str(corpus), train__epochs=1, augment=[], folds__use="all")
    train_run(plain, root, quiet=True)
    return root / "tiny"


def wav(path: Path, rate: int = RATE, channels: int = 1) -> Path:
    samples = np.sin(np.arange(rate // 4)[:, None] * 2500 / rate) * np.linspace(0.3, 0.5, channels)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
        ({"data__manifest": "none.parquet"}, "no manifest at none.parquet"),
        ({"data__where": {"sex": "f"}}, "has no column 'sex'"),
        ({"data__where": {"half": 7}}, "no row has half = '7'"),
        ({"folds__use": 9}, "folds.use: found 9; expected 0 to 1, 'all' or 'full'"),
        ({"folds__by": "third"}, "the manifest has no column 'third'"),
        ({"data__max_seconds": 0.001}, "data.max_seconds: no training row is as short as 0.001 s"),
        ({"head__target": "txt"}, "'txt' is no column of the manifest; did you mean 'text'?"),
        ({"text__alphabet": "ab"}, "text outside the vocabulary"),
        ({"backbone__heads": 3}, "backbone 'squeezeformer': dim 16 is not a multiple of heads 3"),
        ({"backbone": {"name": "squeezeformer", "dim": 16}}, "backbone 'squeezeformer': "),
        ({"backbone__recover_at": 9}, "must be in order"),
        ({"frontend__spec_augment": {"freq_mask": 2}}, "frontend 'logmel': "),
        ({"augment": [{"name": "speed", "p": 2.0}]}, "augment 'speed': "),
        ({"optim__name": "adamx"}, "optim.name: found 'adamx'"),
        ({"train__device": "cuda"}, "train.device, devices or strategy: "),
        ({"train__strategy": "ddq"}, "train.device, devices or strategy: "),
        ({"competition": "moon"}, "no folder competitions/moon here; known: asl_fingerspelling, "),
    ],
)
def test_bad_configs_write_nothing(refused, config, tmp_path, changes, wanted):
    if changes.get("train__device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert wanted in refused("train", config(**changes), "--root", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_batch_seconds_without_a_rate(refused, config, corpus, tmp_path):
    folder = shutil.copytree(corpus.parent, tmp_path / "corpus")
    polars.read_parquet(corpus).drop("rate").write_parquet(folder / "manifest.parquet")
    dense = {"frontend": {"name": "dense", "channels": 1}, "data__manifest": str(folder / "manifest.parquet")}
    path = config(data__batch_seconds=1.0, data__batch_frames=None, **dense)
    assert "data.batch_seconds needs a rate in the manifest" in refused("train", path, "--root", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_missing_files_and_folders(refused, config, corpus, trained, tmp_path):
    assert "no config at" in refused("train", tmp_path / "none.yaml", "--root", tmp_path / "runs")
    assert "expected key=value" in refused("train", config(), "epochs", "--root", tmp_path / "runs")
    assert "is not a run: it has no config.yaml" in refused("predict", tmp_path / "no", corpus, tmp_path / "o.parquet")
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "config.yaml", tmp_path / "begun")
    assert "has no finished fold; go on with: seqformer train" in refused("score", tmp_path / "begun", corpus)
    assert "no manifest at" in refused("predict", trained, tmp_path / "no.parquet", tmp_path / "o.parquet")
    assert "has no column 'sex'" in refused("predict", trained, corpus, tmp_path / "o.parquet", "--where", "sex=f")
    assert "no row has half = '7'" in refused("score", trained, corpus, "--where", "half=7")
    assert "expected column=value" in refused("score", trained, corpus, "--where", "half")
    assert "no audio file at" in refused("transcribe", trained, tmp_path / "no.wav")
    (tmp_path / "text.wav").write_text("no audio at all")
    assert "text.wav: " in refused("transcribe", trained, wav(tmp_path / "good.wav"), tmp_path / "text.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "empty.wav" in refused("transcribe", trained, tmp_path / "empty.wav")
    assert "no backbone matches 'squeezeformer_xxs'" in refused("models", "squeezeformer_xxs")
    assert not list(tmp_path.glob("*.parquet"))


def test_a_folder_that_is_a_file(refused, config, trained, corpus, tmp_path):
    (tmp_path / "runs").write_text("")
    assert str(tmp_path / "runs") in refused("train", config(), "--root", tmp_path / "runs")
    assert "cannot write" in refused("predict", trained, corpus, tmp_path)


def test_another_config_or_manifest(refused, program, config, corpus, tmp_path):
    runs = ("--root", tmp_path / "runs")
    assert program("train", config(), *runs)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    err = refused("train", config(optim__lr=0.1, text__alphabet="abc"), *runs)
    assert "tiny was made with another config: optim.lr, text.alphabet differ; choose another run name" in err
    folder = shutil.copytree(corpus.parent, tmp_path / "corpus")
    polars.read_parquet(corpus).head(30).write_parquet(folder / "manifest.parquet")
    here = tmp_path / "corpus" / "manifest.parquet"
    assert "another config: data.manifest differ" in refused("train", config(data__manifest=str(here)), *runs)
    (tmp_path / "runs" / "tiny" / "manifest_hash").write_text("0" * 64)
    assert f"was made with another {corpus}; choose another run name" in refused("train", config(), *runs)
    (tmp_path / "runs" / "tiny" / "manifest_hash").write_bytes(before[tmp_path / "runs" / "tiny" / "manifest_hash"])
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
    # Free to change: how many workers, which folds. Anything, once it is accepted.
    assert program("train", config(data__workers=1, folds__use=0), *runs)[0] == 0
    code, out, _ = program("train", config(optim__lr=0.1, folds__use="all"), "--accept-changes", *runs)
    assert code == 0 and "fold 0: finished before, skipped" in out


def test_a_run_that_trained_nothing_yet_may_change(program, refused, config, tmp_path, monkeypatch):
    """A run stopped before its first checkpoint binds nobody to its config or to what was fitted for it."""
    runs = ("--root", tmp_path / "runs")
    monkeypatch.setattr(FoldTrainer, "work", lambda self: (_ for _ in ()).throw(seqformer.InputError("lower the lr")))
    assert "lower the lr" in refused("train", config(), *runs)
    assert (tmp_path / "runs" / "tiny" / "fold0" / "targets.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert program("train", config(text__alphabet="abcd"), *runs)[0] == 0
    assert '"abcd"' in (tmp_path / "runs" / "tiny" / "fold0" / "targets.json").read_text()


def test_checkpoints_of_other_folds_and_damaged_ones(refused, config, trained, tmp_path):
    arguments = ("train", config(folds__use="all"), "--root", tmp_path)
    run = shutil.copytree(trained, tmp_path / "tiny")
    (run / "fold0" / "done.json").unlink()
    (run / "fold0" / "last" / FILES[0]).write_bytes(b"")
    assert "fold0/last is damaged; put back a copy of it, or remove it" in refused(*arguments)
    shutil.rmtree(run / "fold0" / "last")
    shutil.copytree(run / "fold1" / "last", run / "fold0" / "last")
    assert "was trained on other rows than fold 0 has now" in refused(*arguments)
    (run / "fold0" / "targets.json").write_text("{}")
    assert "targets.json is missing or damaged" in refused(*arguments)
    (run / "fold0" / "done.json").write_text("{}")
    assert "targets.json is missing or damaged" in refused("transcribe", run, wav(tmp_path / "a.wav"))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines a run says."""
    found: list[str] = []
    monkeypatch.setattr(RunLog, "say", lambda self, line: found.append(line))
    return found


def test_one_bad_row_is_skipped_counted_and_named(program, config, tmp_path, said):
    """Row 3 is trained on in fold 0: the one step of each epoch that meets it is skipped, and the score is a number."""
    manifest = poisoned(tmp_path / "bad", [3])
    path = config(data__manifest=str(manifest), train__epochs=2, **DENSE)
    assert program("train", path, "--root", tmp_path)[0] == 0
    skips = [line for line in said if "step skipped; batch: row03, row" in line]
    assert len(skips) == 2 and sum("skipped 1 steps" in line for line in said if "  epoch " in line) == 2
    records = [json.loads(line) for line in (tmp_path / "tiny" / "log.jsonl").read_text().splitlines()]
    named = [record["skipped"] for record in records if "skipped" in record]
    assert len(named) == 2 and all(ids[0] == "row03" for ids in named)
    assert sum(record.get("grad_norm", 0) is None for record in records) == 2
    assert all(tensor.isfinite().all() for tensor in load_weights(tmp_path / "tiny" / "fold0" / "last").values())


def test_nothing_but_bad_rows_stops_the_run(refused, config, tmp_path, said):
    manifest = poisoned(tmp_path / "bad", list(range(40)))
    err = refused("train", config(data__manifest=str(manifest), train__epochs=20, **DENSE), "--root", tmp_path)
    assert "gradient norm nan; step skipped; batch: row" in err
    assert f"; {MOST_SKIPPED} steps in a row: lower optim.lr, or look at these rows" in err
    assert sum("step skipped" in line for line in said) == MOST_SKIPPED - 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_is_named(refused, config, corpus, tmp_path, workers):
    """Also from a loader's worker process, whose errors come with a traceback."""
    table, bad = polars.read_parquet(corpus).drop("row"), tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    paths = [str(bad) if row == 5 else str(wav(tmp_path / f"{row}.wav")) for row in range(table.height)]
    manifest = tmp_path / "manifest.parquet"
    seqformer.write_manifest(
        table.with_columns(polars.Series("path", paths), polars.lit(2000).alias("frames")), manifest
    )
    err = refused("train", config(data__manifest=str(manifest), data__workers=workers), "--root", tmp_path)
    assert err.startswith(f"error: row row05: {bad}: ")


def test_train_predict_score_transcribe(program, config, tmp_path):
    """From a manifest to text, with files of other rates, in stereo, shorter than a frame."""
    manifest = write_corpus(tmp_path / "corpus", rows=30)
    path = config(data__manifest=str(manifest), data__where={"half": [0, 1]}, train__epochs=1, folds__use="all")
    code, out, _ = program("train", path, "--root", tmp_path / "runs")
    assert code == 0 and "fold 1  epoch 1/1" in out and "out of fold" in out
    run = tmp_path / "runs" / "tiny"
    facts = json.loads((run / "metrics.json").read_text())
    table = polars.read_parquet(run / "oof.parquet")
    assert facts["rows"] == table.height == table["id"].n_unique() == 30
    guess = dict(zip(table["id"], table["prediction"], strict=True))
    assert facts["out_of_fold"] == pytest.approx(cer(table["prediction"].to_list(), table["truth"].to_list()))

    code, out, _ = program("predict", run, manifest, tmp_path / "new" / "all.parquet", "--where", "half=1")
    found = polars.read_parquet(tmp_path / "new" / "all.parquet")
    assert code == 0 and "15 rows -> " in out and found.columns == ["id", "prediction"] and found.height == 15
    code, _, error = program("score", run, manifest)
    assert code == 2 and "rows were trained on" in error and "--seen" in error
    code, out, _ = program("score", run, manifest, "--seen")
    assert code == 0 and out.startswith("cer ") and "on 30 rows, 2 folds" in out

    files = [wav(tmp_path / "a.wav"), wav(tmp_path / "b.flac", 44_100, 2), wav(tmp_path / "c.wav", 16_000)]
    soundfile.write(tmp_path / "d.wav", np.ones(3, np.float32), RATE)
    code, out, _ = program("transcribe", run, *files, tmp_path / "d.wav", files[0])
    texts = dict(line.split("\t") for line in out.splitlines())
    assert code == 0 and list(texts) == [str(path) for path in (*files, tmp_path / "d.wav")]
    assert len(out.splitlines()) == 5  # a file given twice is answered twice
    assert program("transcribe", run, files[0])[1] == texts[str(files[0])] + "\n"
    assert set("".join(texts.values()) + "".join(guess.values())) <= set("abc")


def test_transcribe_wants_a_run_that_makes_text_of_audio(refused, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "tiny")
    plain = (run / "config.yaml").read_text()
    frontend = "frontend:\n  name: dense\n  channels: 1\n"
    start, end = plain.index("frontend:"), plain.index("backbone:")
    (run / "config.yaml").write_text(plain[:start] + frontend + plain[end:])
    assert "turns no audio into text" in refused("transcribe", run, wav(tmp_path / "a.wav"))
    (run / "config.yaml").write_text(plain.replace("dim: 16", "dim: 32"))
    assert "holds the weights of another model" in refused("transcribe", run, wav(tmp_path / "a.wav"))


def test_the_program_itself(tmp_path):
    """The installed module, in a process of its own: one line, exit code 2, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "seqformer", "train", "none.yaml"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no config at none.yaml\n")
    assert not list(tmp_path.iterdir())


def test_save_a_fold(program, refused, trained, tmp_path):
    code, out, _ = program("save", trained, tmp_path / "saved", "--fold", "1")
    assert code == 0 and str(tmp_path / "saved") in out
    model, fold = seqformer.load_pretrained(tmp_path / "saved"), TrainedRun(trained).fold("1")
    state = fold.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert "out of fold" in (tmp_path / "saved" / "README.md").read_text()
    assert "no finished fold 7; finished: fold0, fold1" in refused("save", trained, tmp_path / "more", "--fold", "7")
    assert not (tmp_path / "more").exists()


def test_transcribe_with_a_checkpoint(program, refused, trained, tmp_path):
    """A saved fold hears what the run of that fold alone hears."""
    assert program("save", trained, tmp_path / "saved")[0] == 0
    files = [tmp_path / f"{number}.wav" for number in range(2)]
    for number, file in enumerate(files):
        soundfile.write(file, 0.1 * np.random.default_rng(number).normal(size=RATE), RATE)
    alone = tmp_path / "run" / "tiny"
    shutil.copytree(trained, alone)
    (alone / "fold1" / "done.json").unlink()
    expected, found = (program("transcribe", source, *files) for source in (alone, tmp_path / "saved"))
    assert expected[0] == found[0] == 0 and found[1] == expected[1] and found[1].count("\n") == 2
    assert "no checkpoint at" in refused("transcribe", tmp_path / "nothing", *files)
