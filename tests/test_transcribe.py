"""The program: long files, files of words with their times, runs and checkpoints, standard input, and their faults."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import TINY, change
from test_long_audio import LISTENER, RATE, make, recording

import seqformer
from seqformer.data.audio import read_audio
from seqformer.data.dataset import SequenceDataset
from seqformer.speech.transcribe import Progress, Reading
from seqformer.train.crossval import train_run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and a recording; not to be changed."""
    folder = tmp_path_factory.mktemp("transcribe")
    seqformer.save_pretrained(make(LISTENER), folder / "model")
    recording(folder / "a.wav", 9)
    return folder


def test_windows_and_files_of_words_say_what_is_printed(program, place, tmp_path):
    model, path = place / "model", place / "a.wav"
    code, text, _ = program("transcribe", model, path)
    assert code == 0 and len(text) > 10
    out = [part for kind in ("srt", "vtt", "ctm", "textgrid") for part in (f"--{kind}", tmp_path / f"a.{kind}")]
    for windows in ([], ["--window", 6, "--overlap", 4]):
        assert program("transcribe", model, path, *windows, *out)[1] == text
        shown = [line for line in (tmp_path / "a.srt").read_text().splitlines() if line and "-->" not in line]
        assert " ".join(line for line in shown if not line.isdigit()).split() == text.split()
        assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
        fields = [line.split() for line in (tmp_path / "a.ctm").read_text().splitlines()]
        assert [word for _, _, _, _, word, _ in fields] == text.split() and {name for name, *_ in fields} == {"a"}
        assert all(float(start) + float(length) <= 9.0 and 0 < float(p) <= 1 for _, _, start, length, _, p in fields)
        grid = (tmp_path / "a.textgrid").read_text()
        assert re.findall(r' text = "(.+)"', grid) == text.split() and "xmax = 9.000000" in grid
    code, texts, _ = program(
        "transcribe", model, path, recording(tmp_path / "b.wav", 2, seed=1), "--ctm", tmp_path / "c"
    )
    names = {line.split()[0] for line in (tmp_path / "c").read_text().splitlines()}
    assert code == 0 and names == {"a", "b"} and texts.startswith(f"{path}\t{text}")


@seqformer.register("dataset", "halves")
def halves(table, targets=None, rate=None, seed=0, augment=None, training=False) -> SequenceDataset:
    """As one that makes examples up of what a manifest for it holds."""
    assert table["half"].is_in([0, 1]).all()
    return SequenceDataset(table, targets, rate, seed, augment, training)


@pytest.mark.parametrize("head", [{"name": "ctc"}, {"name": "transducer", "predictor_dim": 8, "joint": 8}])
def test_runs_read_any_audio_whatever_their_dataset_makes_up(program, corpus, tmp_path, head):
    quick = {"train__epochs": 1, "augment": [], "folds__use": "all", "dataset": {"name": "halves"}}
    train_run(change(TINY, data__manifest=str(corpus), head=head, **quick), tmp_path, quiet=True)
    files = [recording(tmp_path / f"{name}.wav", 1.5, rate=8000, seed=seed) for seed, name in enumerate("ab")]
    code, whole, err = program("transcribe", tmp_path / "tiny", *files)
    assert code == 0 and len(whole.splitlines()) == 2, err
    code, timed, err = program("transcribe", tmp_path / "tiny", *files, "--ctm", tmp_path / "words.ctm")
    assert code == 0 and timed == whole, err
    searched = [program("transcribe", tmp_path / "tiny", *files, "--beam", 4, *more)
                for more in ([], ["--ctm", tmp_path / "beam.ctm"])]  # fmt: skip
    assert searched[0][0] == 0
    if head["name"] == "ctc":  # two folds with one tokenizer: of each frame their mean is read
        assert searched[0] == searched[1]
    else:
        code, _, err = searched[1]
        assert code == 2 and "no probabilities of units in frames, as ctc does" in err and err.count("\n") == 1


def test_faults_are_one_line(program, place, tmp_path):
    model, path, none = place / "model", place / "a.wav", tmp_path / "none"
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", torch.zeros(0).numpy(), RATE)
    (tmp_path / "b c.wav").write_bytes(path.read_bytes())
    (tmp_path / "a.wav").write_bytes(path.read_bytes())
    for arguments, told in [
        ([], "name one of them"),
        ([path, "--stream"], "name one of them"),
        (["--stream", "--beam", 4], "--stream prints what it hears at once, unit by unit; it does not go with --lm"),
        (["--stream", "--ctm", none], "it does not go with --ctm"),
        ([path, path, "--srt", none], "--srt is of one file; found 2"),
        ([path, "--vtt", none / "a.vtt"], f"--vtt {none / 'a.vtt'}: there is no folder {none}"),
        ([tmp_path / "b c.wav", "--ctm", none], "a space parts the fields, found 'b c'"),
        ([path, tmp_path / "a.wav", "--ctm", none], "2 files are named 'a'"),
        ([path, "--window", 3], "overlap is 5 s of windows of 3 s"),
        ([path, "--window", "nan"], "overlap is 5 s of windows of nan s"),
        ([path, "--lm-weight", 1], "of a language model: --lm"),
        ([tmp_path / "empty.wav"], "empty.wav: the file has 0 bytes"),
        ([tmp_path / "silent.wav"], "silent.wav: the file has no samples"),
    ]:
        code, out, err = program("transcribe", model, *arguments)
        assert (code, out) == (2, "") and told in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert not none.exists()


def test_audio_that_breaks_off_on_standard_input_is_kept(program, place, monkeypatch):
    samples, _ = read_audio(place / "a.wav")
    stream = seqformer.Stream(seqformer.load_pretrained(place / "model"))
    stream.push(samples[: round(8.875 * RATE) - 1])
    stream.finish()
    wav = (place / "a.wav").read_bytes()[:-1001]
    for data, told in ((wav, "the audio breaks off after 8.87 s of 9.00 s"),
                       (wav[44:], "the audio breaks off inside a sample, after 8.87 s (70999 bytes)"),
                       (b"", "standard input holds no audio")):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        code, out, err = program("transcribe", place / "model", "--stream")
        assert code == 2 and err.splitlines()[-1] == f"error: {told}"
        assert "".join(out.split()) == "".join(stream.text.split() if data else [])


def test_progress_is_a_line_for_every_tenth(capsys):
    progress = Progress("a.wav")
    for second in range(0, 601):
        progress(second, 600)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"a.wav: {minutes}.0 of 10.0 min" for minutes in range(1, 11)]


def test_long_files_are_read_by_windows_others_whole():
    assert Reading().window_of(120) == float("inf") and Reading().window_of(121) == 30
    assert Reading(7.0).window_of(1) == Reading(7.0).window_of(1000) == 7
