"""Archives of audio are read as files are: the same samples, one line for every fault, no unpacking."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile
from conftest import TINY, change

from seqformer import InputError, RowReader, SequenceDataset, read_manifest, write_manifest
from seqformer.augment.compose import Augment
from seqformer.config import write_config
from seqformer.data.loader import load_batches
from seqformer.data.provenance import pseudo_rows, trained_on
from seqformer.data.shards import index_shards

RATE = 8_000


def audio(seed: int, ending: str = "flac", frames: int | None = None) -> bytes:
    rng = np.random.default_rng(seed)
    samples, content = 0.1 * rng.standard_normal(frames or rng.integers(500, 3_000)), io.BytesIO()
    form = {"opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16")}[ending]
    soundfile.write(content, samples, RATE, format=form[0], subtype=form[1])
    return content.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def items(*numbers: int) -> list[tuple[str, bytes]]:
    """Audio of three kinds; texts as .txt, or as .json with further values."""
    found = []
    for number in numbers:
        ending, key = ("flac", "wav", "opus")[number % 3], f"s{number % 2}/utt-{number:03d}"
        found.append((f"{key}.{ending}", audio(number, ending)))
        if number % 2:
            said = {"text": f"number  {number}", "speaker": f"s{number % 4}", "frames": -1, "nested": [1]}
            found.append((f"{key}.json", json.dumps(said).encode()))
        else:
            found.append((f"{key}.txt", f"number {number}\n".encode()))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    """Manifests of the same 12 items, in two archives and as files."""
    root = tmp_path_factory.mktemp("shards")
    shard(root / "tars" / "a" / "shard-000.tar", items(*range(7)))
    long = [("x" * 120 + "/" + name, content) for name, content in items(9)]  # a header of several blocks
    shard(
        root / "tars" / "shard-001.tar",
        [*items(7, 8), ("__info__.txt", b""), *long, *items(10, 11)],
        tarfile.PAX_FORMAT,
    )
    rows = index_shards(root / "tars", root / "in_tars.parquet")
    write_manifest(polars.DataFrame(rows, infer_schema_length=None), root / "in_tars.parquet")
    loose = []
    for row in rows:
        with tarfile.open(root / row["path"]) as archive:
            name = next(info.name for info in archive if info.offset_data == row["offset"])
            archive.extract(name, root / "files", filter="data")
        place = {"id": row["id"], "path": f"files/{name}", "text": row["text"]}
        loose.append(place | {"frames": row["frames"], "rate": row["rate"]})
    write_manifest(loose, root / "in_files.parquet")
    return root / "in_tars.parquet", root / "in_files.parquet"


def test_an_index_says_what_is_where(corpus):
    table = polars.read_parquet(corpus[0])
    assert table.height == 12 and table["path"].unique(maintain_order=True).to_list() == [
        "tars/a/shard-000.tar", "tars/shard-001.tar"
    ]  # fmt: skip
    assert table["id"][0] == "s0/utt-000" and table["id"][9].endswith("xx/s1/utt-009")
    assert table["text"].to_list() == [f"number {n}" for n in range(12)]
    assert table["speaker"].to_list() == [f"s{n % 4}" if n % 2 else None for n in range(12)]
    assert set(table.columns) == {"id", "path", "offset", "bytes", "frames", "rate", "text", "speaker"}
    assert (table["frames"] > 0).all() and (table["rate"] == table["rate"][0]).sum() >= 8  # Opus may have another


def test_a_row_is_that_of_the_file_in_any_order_and_process(corpus):
    tars, files = (RowReader(read_manifest(path), RATE) for path in corpus)
    sent = pickle.loads(pickle.dumps(tars))
    for index in np.random.default_rng(0).permutation(12).tolist() * 2:
        np.testing.assert_array_equal(tars[index], files[index])
        np.testing.assert_array_equal(sent[index], files[index])
        assert len(tars[index]) == tars.frames()[index]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_batches_are_those_of_files_for_any_number_of_workers(corpus):
    keys = [[(epoch, index) for index in range(start, start + 4)] for epoch in (0, 1) for start in (0, 4, 8)]
    found = []
    for path, workers in ((corpus[0], 0), (corpus[0], 2), (corpus[1], 0)):
        data = SequenceDataset(read_manifest(path), rate=RATE, seed=3, augment=Augment([{"name": "noise"}], RATE))
        found.append([(batch.ids, batch.inputs["x"].numpy().tobytes()) for batch in load_batches(data, keys, workers)])
    assert found[0] == found[1] == found[2]


def test_two_rows_of_one_archive_are_not_the_same_recording(corpus):
    """Pseudo-labels of one item of an archive are fine beside a validated other one, and refused for the same one."""
    table = read_manifest(corpus[0])
    folds = np.arange(12) % 2
    proof = {"labelled_by": "run", "labelled_fold": "0", "labelled_on": trained_on(table["id"], folds, "0")}
    for row, fault in ((1, None), (2, "1 rows read the files of rows that fold 0 is validated on")):
        label = table[[row]].with_columns(id=polars.lit("new"), labelled_id=polars.lit("new"))
        label = label.with_columns(polars.lit(value).alias(name) for name, value in proof.items())
        if fault is None:
            assert pseudo_rows([("m", label)], table, folds, "0", "text").height == 1
        else:
            with pytest.raises(InputError, match=fault):
                pseudo_rows([("m", label)], table, folds, "0", "text")


def test_a_run_on_archives_is_that_on_files_bit_for_bit(corpus, program, tmp_path):
    """Trained through the program, in rooms and with recorded noise, at the rate that the frontend asks for."""
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "hum.wav").write_bytes(audio(50, "wav"))
    noisy = [{"name": "reverb", "p": 0.7}, {"name": "noise", "folder": str(tmp_path / "noise"), "p": 0.7}]
    found = []
    for path in corpus:
        manifest = tmp_path / path.name
        table = read_manifest(path).with_columns(half=polars.Series(np.arange(12) % 2))
        write_manifest(table.with_columns(text=polars.lit("ab")), manifest)
        plain = change(TINY, data__manifest=str(manifest), run=path.stem, augment=noisy, train__epochs=1)
        (tmp_path / "config.yaml").write_text(write_config(plain))
        code, _, error = program("train", tmp_path / "config.yaml", "--root", tmp_path)
        assert code == 0, error
        run = tmp_path / path.stem
        found.append(((run / "fold0/last/model.safetensors").read_bytes(), polars.read_parquet(run / "oof.parquet")))
    assert found[0][0] == found[1][0] and found[0][1].equals(found[1][1]) and found[0][1].height == 6


def test_the_command_and_validation(corpus, program, tmp_path):
    out = tmp_path / "manifest.parquet"
    code, said, _ = program("index-tar", corpus[0].parent / "tars", out)
    assert code == 0 and said.startswith("12 rows of 2 archives, 0.00 h, id, path, offset, bytes, frames, rate, text")
    assert polars.read_parquet(out)["path"][0] == str((corpus[0].parent / "tars/a/shard-000.tar").resolve())
    assert program("validate", out, "--read")[0] == 0
    code, _, error = program("index-tar", tmp_path / "none", out)
    assert code == 2 and "none is not a folder" in error


def cut(size: int):
    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:size] if size > 0 else content[: len(content) + size])

    return change


def cut_before_text(before: int):
    return lambda path: cut(path.read_bytes().rindex(b"number") - before)(path)


def rewrite(*members):
    return lambda path: shard(path, [*items(0, 1), *members])


def link(path: Path) -> None:
    with tarfile.open(path, "a:") as archive:
        info = tarfile.TarInfo("b.flac")
        info.type, info.linkname = tarfile.SYMTYPE, "a.flac"
        archive.addfile(info)


def compress(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))


FAULTS = {
    "cut in the last member": (cut(6_000), "shard.tar: cut short"),
    "cut between members": (cut_before_text(512), "cut short: it has no end mark"),
    "cut in a header": (cut_before_text(300), "shard.tar: cut short"),
    "compressed": (compress, "shard.tar: no uncompressed tar archive"),
    "no tar": (lambda path: path.write_bytes(b"no archive" * 500), "shard.tar: no uncompressed tar archive"),
    "joined": (lambda path: path.write_bytes(path.read_bytes() * 2), "more follows its end mark"),
    "a link": (link, "b.flac is a link; store the file itself"),
    "without text": (rewrite(("b/c.flac", audio(3))), "item that cannot be used (1): b/c (shard.tar: no text: neither"),
    "an empty text": (rewrite(("c.wav", audio(3, "wav")), ("c.txt", b" \n")), "c (shard.tar: no text: neither"),
    "a broken json": (rewrite(("c.flac", audio(3)), ("c.json", b"{")), "c (shard.tar: its text cannot be read: "),
    "a text that is none": (rewrite(("c.flac", audio(3)), ("c.txt", b"\xff\xfe")), "c (shard.tar: its text cannot be"),
    "without audio": (rewrite(("c.txt", b"hello")), "no audio (1): c (shard.tar: txt)"),
    "two files": (rewrite(("c.flac", audio(3)), ("c.wav", audio(3, "wav")), ("c.txt", b"a")), "files of a kind (1): c"),
    "a key twice": (rewrite(*items(0)), "two files of a kind (1): s0/utt-000 (shard.tar: flac, txt, flac, txt)"),
    "damaged audio": (rewrite(("c.flac", b"fLaC" + bytes(99)), ("c.txt", b"a")), "cannot be used (1): c (shard.tar"),
    "cut audio": (rewrite(("c.wav", audio(3, "wav")[:-9]), ("c.txt", b"a")), "the file is cut short"),
    "a key in two archives": (
        lambda path: shard(path.with_name("other.tar"), items(1)),
        "key in two archives (1): s1/utt-001 (shard.tar: also other.tar)"),
    "no archive": (lambda path: path.rename(path.with_suffix(".tar.gz")), "no .tar file; decompress shard.tar.gz"),
    "no audio at all": (lambda path: shard(path, []), "no member of 1 archives ends with flac"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line(tmp_path, name):
    damage, message = FAULTS[name]
    damage(shard(tmp_path / "tars" / "shard.tar", items(0, 1, 2)))
    with pytest.raises(InputError) as caught:
        index_shards(tmp_path / "tars", tmp_path / "m.parquet")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_that_points_beside_its_archive_is_refused(corpus, tmp_path):
    table = read_manifest(corpus[0])
    spans = {"offset": table["offset"].to_list(), "bytes": table["bytes"].to_list()}
    cases = [
        (table.drop("bytes"), "columns 'offset' and 'bytes' go together"),
        (table.with_columns(offset=polars.Series([None, *spans["offset"][1:]])), "offset and bytes go together"),
        (table.with_columns(bytes=polars.Series([10**9, *spans["bytes"][1:]])), "s0/utt-000 ("),
        (table.with_columns(offset=polars.Series([-1, *spans["offset"][1:]])), "offset must be 0 or more"),
        (table.with_columns(bytes=polars.Series([0, *spans["bytes"][1:]])), "bytes must be positive"),
    ]  # fmt: skip
    for wrong, message in cases:
        with pytest.raises(InputError) as caught:
            write_manifest(wrong, tmp_path / "m.parquet")
        assert message in str(caught.value) and "\n" not in str(caught.value)
    moved = RowReader(table.with_columns(offset=polars.col("offset") + 512))
    with pytest.raises(InputError, match=r"row s0/utt-000: .*shard-000\.tar at byte 1024: "):
        moved[0]
