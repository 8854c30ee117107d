"""A corpus in LibriSpeech layout is prepared whole or refused whole, and a spoken one can be made from nothing."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile

import seqformer
from competitions.librispeech import speak as speaking
from competitions.librispeech.prepare import main, prepare
from competitions.librispeech.speak import VOCABULARY, VOICES, Espeak, plan_phrases, plan_table, speak

MINI = Path(__file__).parents[2] / "shared" / "data" / "librispeech_mini"
TEXTS = {
    "84-1-0000": "TURN ON THE LIGHT",
    "84-1-0001": "DON'T",
    "121-7-0000": "OPEN THE  DOOR",
    "121-7-0010": "STOP",
    "121-7-0002": "PLAY MUSIC",
}
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the shared LibriSpeech sample is not here")
needs_espeak = pytest.mark.skipif(
    not importlib.util.find_spec("espeakng_loader"), reason="extra 'demo' is not installed"
)


def tone(name: str) -> np.ndarray:
    """A short tone whose length and pitch belong to the id alone, so that a mix-up shows."""
    rng = np.random.default_rng(list(name.encode()))
    frames = int(rng.integers(800, 2400))
    return (9000 * np.sin(np.arange(frames) * rng.uniform(0.05, 0.5))).astype(np.int16)


def write_split(split: Path, texts: dict[str, str] = TEXTS, suffix: str = ".flac") -> Path:
    for name, text in texts.items():
        speaker, chapter, _ = name.split("-")
        folder = split / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name + suffix)
        if suffix == ".opus":  # soundfile knows the container by another ending only
            soundfile.write(path, tone(name), 16_000, format="OGG", subtype="OPUS")
        else:
            soundfile.write(path, tone(name), 16_000)
        with open(folder / f"{speaker}-{chapter}.trans.txt", "a", encoding="utf-8") as file:
            file.write(f"{name} {text}\n")
    return split


def refusal(folder: Path, out: Path, **options) -> str:
    """The message with which a corpus is refused; nothing may be written by then."""
    with pytest.raises(seqformer.InputError) as caught:
        prepare(folder, out, **options)
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_columns_text_frames_and_samples(tmp_path):
    write_split(tmp_path / "corpus" / "train-x")
    write_split(tmp_path / "corpus" / "dev-x", {"5-5-0000": "Yes"}, ".wav")
    manifest = prepare(tmp_path / "corpus", tmp_path / "out")
    table = polars.read_parquet(manifest)
    columns = ["id", "path", "row", "frames", "rate", "text", "speaker", "chapter", "split", "seconds"]
    assert manifest == tmp_path / "out" / "manifest.parquet"
    assert table.columns == columns
    # speakers and utterances in the order of their numbers, splits by name
    assert table["id"].to_list() == ["5-5-0000", "84-1-0000", "84-1-0001", "121-7-0000", "121-7-0002", "121-7-0010"]
    assert table["text"].to_list() == ["yes", "turn on the light", "don't", "open the door", "play music", "stop"]
    store = np.fromfile(tmp_path / "out" / "audio" / "data.bin", np.int16)
    starts = np.load(tmp_path / "out" / "audio" / "offsets.npy")
    for row in table.to_dicts():
        assert row["frames"] == len(tone(row["id"])) and row["rate"] == 16_000
        assert row["seconds"] == row["frames"] / 16_000
        np.testing.assert_array_equal(store[starts[row["row"]] : starts[row["row"] + 1]], tone(row["id"]))


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".opus"])
def test_every_format_keeps_its_frames(tmp_path, suffix):
    write_split(tmp_path / "corpus" / "s", suffix=suffix)
    for store in (True, False):
        table = polars.read_parquet(prepare(tmp_path / "corpus", tmp_path / f"out{store}", store))
        assert {row["id"]: row["frames"] for row in table.to_dicts()} == {name: len(tone(name)) for name in TEXTS}


@pytest.mark.parametrize(
    "split, given", [("c/a", "c"), ("c/LibriSpeech/a", "c"), ("c/LibriSpeech/a", "c/LibriSpeech/a")]
)
def test_folder_of_splits_archive_and_single_split(tmp_path, split, given):
    write_split(tmp_path / split)
    table = polars.read_parquet(prepare(tmp_path / given, tmp_path / "out"))
    assert table["split"].to_list() == ["a"] * len(TEXTS)


def test_without_store_the_manifest_points_at_the_files(tmp_path):
    write_split(tmp_path / "c" / "s")
    soundfile.write(tmp_path / "c" / "s" / "84" / "1" / "84-1-0001.flac", tone("84-1-0001"), 8_000)
    table = polars.read_parquet(prepare(tmp_path / "c", tmp_path / "out", store=False))
    assert "row" not in table.columns and not (tmp_path / "out" / "audio").exists()
    for row in table.to_dicts():
        info = soundfile.info(row["path"])
        assert (info.frames, info.samplerate) == (row["frames"], row["rate"])


def test_hidden_files_are_ignored(tmp_path):
    split = write_split(tmp_path / "c" / "s")
    for hidden in ("84/1/._84-1-0000.flac", "84/1/._84-1.trans.txt", "84/1/.cache/x.wav", ".old/1/1/1-1-1.wav"):
        (split / hidden).parent.mkdir(parents=True, exist_ok=True)
        (split / hidden).write_bytes(b"\x00\x05\x16\x07")
    assert polars.read_parquet(prepare(tmp_path / "c", tmp_path / "out")).height == len(TEXTS)


@pytest.mark.parametrize("rate, subtype", [(8_000, "PCM_16"), (16_000, "FLOAT"), (44_100, "PCM_24")])
def test_other_rates_and_sample_types_keep_duration_and_level(tmp_path, rate, subtype):
    time = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, subtype=subtype)
    samples, found = seqformer.read_pcm(tmp_path / "a.wav", 16_000)
    wanted = 16384 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert found == 16_000 and samples.dtype == np.int16 and len(samples) == 16_000
    inner = slice(200, -200)  # a resampling filter rings at the ends
    assert np.abs(samples[inner] - wanted[inner]).max() < 100


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def without_frames(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.int16), 16_000)


def overwrite(path: Path) -> None:
    """Damage the middle of a file and keep its length."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 20 : middle + 20] = bytes(40)
    path.write_bytes(data)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    "suffix, damage",
    [
        (".flac", lambda path: cut(path, 0.5)),
        (".wav", lambda path: cut(path, 0.5)),  # libsndfile itself reads this without a word
        (".opus", lambda path: cut(path, 0.5)),
        (".opus", lambda path: cut(path, 0.99)),
        (".flac", lambda path: cut(path, 0)),
        (".wav", without_frames),
        (".flac", overwrite),
        (".wav", lambda path: path.write_bytes(b"no audio" * 50)),
        (".wav", lambda path: soundfile.write(path, np.zeros((99, 2), np.int16), 16_000)),
        (".wav", lambda path: soundfile.write(path, np.full(99, np.nan), 16_000, subtype="FLOAT")),
    ],
)
def test_damaged_audio_is_refused(tmp_path, suffix, damage, store):
    split = write_split(tmp_path / "c" / "s", suffix=suffix)
    damage(split / "121" / "7" / f"121-7-0002{suffix}")
    message = refusal(tmp_path / "c", tmp_path / "out", store=store)
    assert f"unreadable audio (1): 121-7-0002 (s/121/7/121-7-0002{suffix}: " in message


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def misplace(split: Path) -> None:
    (split / "84/1/84-1-0001.flac").rename(split / "84/84-1-0001.flac")


@pytest.mark.parametrize(
    "damage, wanted",
    [
        (
            lambda s: (s / "84/1/84-1-0001.flac").unlink(),
            "transcript without audio (1): 84-1-0001 (s/84/1/84-1.trans.txt)",
        ),
        (
            lambda s: (s / "84/1/84-1.trans.txt").unlink(),
            "audio without transcript (2): 84-1-0000 (s/84/1/84-1-0000.flac)",
        ),
        (
            lambda s: append(s / "84/1/84-1.trans.txt", "84-1-0002 "),
            "empty transcript (1): 84-1-0002 (s/84/1/84-1.trans.txt)",
        ),
        (
            lambda s: append(s / "84/1/84-1.trans.txt", "84-1-0001 NO"),
            "id with two transcripts (1): 84-1-0001 (s/84/1/",
        ),
        (
            lambda s: write_split(s, {"84-1-0001": "A"}, ".wav"),
            "duplicate id (1): 84-1-0001 (s/84/1/84-1-0001.wav: also s/84",
        ),
        (
            lambda s: write_split(s.with_name("t"), {"84-1-0001": "A"}),
            "duplicate id (1): 84-1-0001 (t/84/1/84-1-0001.flac",
        ),
        (lambda s: (s.parent / "dev" / "1").mkdir(parents=True), "split without audio (1): dev"),
        (misplace, "(1): 84-1-0001 (s/84/84-1-0001.flac)"),
        (
            lambda s: (s / "84/1/84-1.trans.txt").write_bytes(b"84-1-0000 \xff\xfe"),
            "unreadable transcript file (1): 84-1.tr",
        ),
    ],
)
def test_audio_and_transcripts_must_fit(tmp_path, damage, wanted):
    damage(write_split(tmp_path / "c" / "s"))
    assert wanted in refusal(tmp_path / "c", tmp_path / "out")


def test_many_faults_of_several_kinds_are_counted_in_one_line(tmp_path):
    split = write_split(tmp_path / "c" / "s")
    for number in range(20, 27):
        append(split / "84/1/84-1.trans.txt", f"84-1-{number:04d} LOST")
    (split / "121/7/121-7.trans.txt").write_text("121-7-0000 A\n121-7-0010\n121-7-0002 B\n")
    message = refusal(tmp_path / "c", tmp_path / "out")
    assert "transcript without audio (7): 84-1-0020 (" in message and "and 4 more" in message
    assert "empty transcript (1): 121-7-0010 (s/121/7/121-7.trans.txt)" in message


def test_missing_folder_other_layout_and_useless_targets(tmp_path):
    assert "nowhere is not a folder" in refusal(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "flat").mkdir()
    soundfile.write(tmp_path / "flat" / "a.wav", tone("a"), 16_000)
    assert "flat is not in LibriSpeech layout" in refusal(tmp_path / "flat", tmp_path / "out")
    write_split(tmp_path / "c" / "s")
    assert "inside the corpus" in refusal(tmp_path / "c", tmp_path / "c" / "out")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(seqformer.InputError, match="file is a file"):
        prepare(tmp_path / "c", tmp_path / "file")


def test_a_refused_corpus_leaves_an_earlier_result_alone(tmp_path):
    split = write_split(tmp_path / "c" / "s")
    prepare(tmp_path / "c", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    cut(split / "121" / "7" / "121-7-0002.flac", 0.5)
    with pytest.raises(seqformer.InputError):
        prepare(tmp_path / "c", tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def exit_code(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    try:
        seqformer.run_command(main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_command_prints_a_table_or_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    split = write_split(tmp_path / "c" / "s")
    assert exit_code(monkeypatch, tmp_path / "c", tmp_path / "out", "--no-store") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["split", "utterances", "hours", "speakers", "words"]
    assert table[1].split() == ["s", "5", "0.000", "2", "11"]
    (split / "84/1/84-1-0001.flac").unlink()
    assert exit_code(monkeypatch, tmp_path / "c", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "84-1-0001 (s/84/1/84-1.trans.txt)" in lines[0]


@needs_mini
def test_real_opus_and_flac(tmp_path):
    table = polars.read_parquet(prepare(MINI / "LibriSpeech" / "dev-mini", tmp_path / "opus"))
    lines = [line.split("\t") for line in (MINI / "LibriSpeech" / "utterances.tsv").read_text().splitlines()]
    stated = {line[1]: float(line[-1]) for line in lines if line[0] == "dev-mini"}
    found = dict(table.select("id", "seconds").iter_rows())
    assert found.keys() == stated.keys()
    assert all(abs(found[name] - stated[name]) < 0.01 for name in stated)
    assert polars.read_parquet(prepare(MINI / "flac_sample", tmp_path / "flac")).height == 8


def test_spoken_plan_is_fixed_by_its_seed():
    plan = plan_phrases()
    assert plan == plan_phrases(2400, 0) and plan_table(plan) != plan_table(plan_phrases(seed=1))
    assert len(plan) == len({phrase.id for phrase in plan}) == len({phrase.text for phrase in plan}) == 2400
    assert {len(phrase.text.split()) for phrase in plan} == {2, 3, 4, 5, 6}
    words = {word for phrase in plan for word in phrase.text.split()}
    assert words == set(VOCABULARY) and len(VOCABULARY) == len(words) and 90 <= len(words) <= 120
    per_voice = polars.Series([phrase.voice for phrase in plan]).value_counts()["count"].to_list()
    assert len(VOICES) >= 12 and per_voice == [50] * len(VOICES)
    with pytest.raises(seqformer.InputError, match="utterances = 0"):
        plan_phrases(0)


@needs_espeak
def test_spoken_corpus_can_be_prepared(tmp_path):
    corpus = speak(tmp_path / "corpus", utterances=48, seed=3)
    plan = {phrase.id: phrase for phrase in plan_phrases(48, 3)}
    assert (corpus / "plan.tsv").read_text() == plan_table(list(plan.values()))
    assert len((corpus / "SPEAKERS.TXT").read_text().splitlines()) == 1 + len(VOICES)
    assert "1-101-0000 " + plan["1-101-0000"].text.upper() in (corpus / "spoken/1/101/1-101.trans.txt").read_text()
    table = polars.read_parquet(prepare(corpus, tmp_path / "out", store=False))
    assert dict(table.select("id", "text").iter_rows()) == {name: phrase.text for name, phrase in plan.items()}
    assert table["speaker"].n_unique() == len(VOICES) and table["rate"].unique().to_list() == [16_000]
    for row in table.to_dicts():
        samples, _ = soundfile.read(row["path"])
        silent, phrase = 16 * plan[row["id"]].lead_ms, plan[row["id"]]
        assert 0.5 < row["seconds"] < 5
        assert abs(np.abs(samples).max() - phrase.level) < 0.01  # not clipped
        assert samples.std() > 0.01 > np.abs(samples[:silent]).max() > 0
    assert speak(corpus, utterances=48, seed=3) == corpus
    with pytest.raises(seqformer.InputError, match="holds another corpus"):
        speak(corpus, utterances=48, seed=4)


@needs_espeak
def test_voices_sound_different():
    """In 32 bands of one sentence, a voice is nearer to itself, said again (espeak varies), than to any other voice."""
    espeak = speaking.load_espeak()

    def bands(voice) -> np.ndarray:
        speech = espeak.say("turn the yellow kitchen lamp off again", voice.name, voice.speed, voice.pitch)
        power = np.abs(np.fft.rfft(speech, 2**17)) ** 2  # 0.17 Hz per bin: the first 2**15 reach 5.5 kHz
        return 10 * np.log10(power[: 2**15].reshape(32, -1).mean(1) / power.mean())

    once, again = (np.array([bands(voice) for voice in VOICES]) for _ in range(2))
    itself = np.sqrt(((once - again) ** 2).mean(-1))  # dB
    apart = np.sqrt(((once[:, None] - again) ** 2).mean(-1)) + np.diag(np.full(len(VOICES), np.inf))
    assert (itself < apart.min(axis=1)).all()


@needs_espeak
@pytest.mark.parametrize("name", ["xx-unknown", "en-us+nobody"])
def test_unknown_voice_is_refused(name):
    with pytest.raises(seqformer.InputError, match=name.replace("+", r"\+")):
        speaking.load_espeak().say("stop", name, 170, 50)


@needs_espeak
def test_interrupted_speaking_leaves_nothing(tmp_path, monkeypatch):
    spoken = []

    def record(phrase, *_):
        spoken.append(phrase)
        if len(spoken) == 3:
            raise KeyboardInterrupt
        return tone(phrase.id)

    monkeypatch.setattr(speaking, "record", record)
    with pytest.raises(KeyboardInterrupt):
        speak(tmp_path / "corpus", utterances=24)
    assert list(tmp_path.iterdir()) == []


def test_missing_espeak_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(seqformer.InputError, match=r"pip install -c constraints.txt -e '.\[demo\]'"):
        Espeak()
