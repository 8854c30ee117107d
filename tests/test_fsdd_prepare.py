"""Spoken digits are prepared whole, with the usual protocol as a fold column, or refused whole."""

import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile

import seqformer
from competitions.fsdd.prepare import main, prepare
from competitions.fsdd.strings import write_strings

SHARED = Path(__file__).parents[2] / "shared" / "data" / "fsdd"
NAMES = [f"{digit}_{speaker}_{index}" for digit in (0, 7) for speaker in ("ann", "de_vries") for index in (3, 4, 5, 12)]


def tone(name: str) -> np.ndarray:
    """A short tone whose length and pitch belong to the id alone, so that a mix-up shows."""
    rng = np.random.default_rng(list(name.encode()))
    frames = int(rng.integers(400, 1200))
    return (9000 * np.sin(np.arange(frames) * rng.uniform(0.05, 0.5))).astype(np.int16)


def write_clone(folder: Path) -> Path:
    (folder / "recordings").mkdir(parents=True)
    for name in NAMES:
        soundfile.write(folder / "recordings" / f"{name}.wav", tone(name), 8_000)
    return folder


def test_columns_labels_usual_protocol_and_samples(tmp_path):
    manifest = prepare(write_clone(tmp_path / "clone"), tmp_path / "out")
    table = polars.read_parquet(manifest)
    assert manifest == tmp_path / "out" / "manifest.parquet"
    columns = ["id", "path", "row", "frames", "rate", "label", "text", "speaker", "index", "usual"]
    assert table.columns == columns and sorted(table["id"].to_list()) == sorted(NAMES)
    assert table.schema["label"] == polars.String and table.schema["usual"].is_integer()
    assert table["id"].to_list()[:5] == ["0_ann_3", "0_ann_4", "0_ann_5", "0_ann_12", "7_ann_3"]
    store = np.fromfile(tmp_path / "out" / "audio" / "data.bin", np.int16)
    starts = np.load(tmp_path / "out" / "audio" / "offsets.npy")
    for row in table.to_dicts():
        assert row["id"] == f"{row['label']}_{row['speaker']}_{row['index']}"
        assert row["text"] == {"0": "zero", "7": "seven"}[row["label"]]
        assert row["usual"] == (0 if row["index"] < 5 else -1)
        assert row["rate"] == 8_000 and row["frames"] == len(tone(row["id"]))
        np.testing.assert_array_equal(store[starts[row["row"]] : starts[row["row"] + 1]], tone(row["id"]))


def test_any_depth_any_format_other_rates_and_other_files(tmp_path, capsys):
    folder = write_clone(tmp_path / "clone")
    soundfile.write(folder / "1_ann_0.flac", np.ones(1600, np.int16), 16_000)
    soundfile.write(folder / "recordings" / "2_ann_0.opus", tone("2"), 8_000, format="OGG", subtype="OPUS")
    soundfile.write(folder / "noise.wav", tone("noise"), 8_000)
    (folder / "recordings" / "._7_ann_3.wav").write_bytes(b"\x00\x05\x16\x07")
    rows = {row["id"]: row for row in polars.read_parquet(prepare(folder, tmp_path / "out")).to_dicts()}
    assert rows.keys() == {*NAMES, "1_ann_0", "2_ann_0"}
    assert rows["1_ann_0"]["frames"] == 800 and rows["2_ann_0"]["frames"] == len(tone("2"))
    assert "left out 1 audio files" in capsys.readouterr().out  # never silently


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "damage, wanted",
    [
        (
            lambda r: cut(r / "7_ann_5.wav"),
            "unreadable audio (1): 7_ann_5 (recordings/7_ann_5.wav: the file is cut short)",
        ),
        (lambda r: (r / "7_ann_5.wav").write_bytes(b""), "unreadable audio (1): 7_ann_5 (recordings/7_ann_5.wav: "),
        (
            lambda r: soundfile.write(r / "7_ann_5.flac", tone("x"), 8_000),
            "duplicate id (1): 7_ann_5 (recordings/7_ann_5.",
        ),
        (lambda r: [path.unlink() for path in r.iterdir()], "no file is named"),
        (lambda r: r.parent.rename(r.parent.with_name("moved")), "clone is not a folder"),
    ],
)
def test_bad_recordings_are_refused(tmp_path, monkeypatch, capsys, damage, wanted):
    damage(write_clone(tmp_path / "clone") / "recordings")
    with pytest.raises(seqformer.InputError) as caught:
        prepare(tmp_path / "clone", tmp_path / "out")
    assert wanted in str(caught.value) and not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / "clone"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        seqformer.run_command(main)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared copy of the data set is not here")
def test_real_recordings(tmp_path):
    table = polars.read_parquet(prepare(SHARED / "test", tmp_path / "out"))
    lines = [line.split("\t") for line in (SHARED / "manifest.tsv").read_text().splitlines()]
    stated = {Path(line[1]).stem: float(line[-1]) for line in lines if line[0] == "test"}
    assert table.height == len(stated) == 500
    assert all(abs(row["frames"] / 8_000 - stated[row["id"]]) < 1e-4 for row in table.to_dicts())


def test_strings_of_students_are_of_the_speakers_and_recordings_they_say(tmp_path):
    folder = write_clone(tmp_path / "clone")
    for name in (f"{digit}_bo_{index}" for digit in (0, 7) for index in (3, 4, 5, 12)):
        soundfile.write(folder / f"{name}.wav", tone(name), 8_000)
    manifest, out = prepare(folder, tmp_path / "out"), tmp_path / "strings"
    write_strings(manifest, out, ["ann"], "bo", (12, 9, 5), seed=0)
    wanted = {"labelled": (17, "ann"), "unlabelled": (9, "de_vries"), "known": (5, "de_vries"), "unseen": (5, "bo")}
    tables = {name: seqformer.read_manifest(out / f"{name}.parquet") for name in wanted}
    assert all((tables[name].height, set(tables[name]["speaker"])) == (n, {who}) for name, (n, who) in wanted.items())
    assert tables["labelled"]["usual"].to_list() == [-1] * 12 + [0] * 5
    # Every string is its recordings with silence between; a tone begins with a zero.
    parts = {"labelled": {-1: (5, 12), 0: (3, 4)}, "unlabelled": {None: (5, 12)}, "known": {None: (3, 4)}}
    for name, allowed in parts.items():
        reader = seqformer.RowReader(tables[name], 8_000)
        for row, record in enumerate(tables[name].to_dicts()):
            rest = np.rint(reader[row] * 32768).astype(int)
            for word in record["text"].split():
                rest = rest[np.flatnonzero(rest)[0] - 1 :]
                indices, digit = allowed[record.get("usual")], {"zero": 0, "seven": 7}[word]
                clips = [tone(f"{digit}_{record['speaker']}_{index}") for index in indices]
                clips = [clip for clip in clips if len(clip) <= len(rest)]
                fits = [len(clip) for clip in clips if abs(rest[: len(clip)] - clip).max() <= 1]
                assert fits, (name, record["id"], word)
                rest = rest[fits[0] :]
            assert not rest.any()
    with pytest.raises(seqformer.InputError, match="no speaker 'eve'"):
        write_strings(manifest, out, ["eve"], "bo", (1, 1, 1), seed=0)
