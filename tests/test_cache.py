"""A cache of audio holds the samples that its files hold, to the last bit, and says where it cannot."""

import os
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile
from typer.testing import CliRunner

from seqformer import InputError, RowReader, StoreWriter, read_manifest, write_manifest
from seqformer.cli import app
from seqformer.data.cache import cache_audio

RATE = 8_000


def write_files(folder: Path, endings: list[str]) -> Path:
    """A manifest of a noise in each of some formats, the first one loud enough to reach both ends of 16 bits."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for number, ending in enumerate(endings):
        samples = rng.normal(0, 0.5 if not number else 0.05, 1000 + 100 * number).clip(-1, 32767 / 32768)
        path = folder / f"{number}.{ending}"
        soundfile.write(path, samples, RATE, subtype="PCM_24" if ending == "aiff" else "PCM_16")
        rows.append({"id": str(number), "path": path.name, "frames": len(samples), "rate": RATE, "text": "one"})
    write_manifest(polars.DataFrame(rows), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def command(*arguments) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["cache", *map(str, arguments)])
    return done.exit_code, done.output or str(done.exception)


def test_samples_keep_their_bits(tmp_path):
    manifest = write_files(tmp_path / "files", ["wav", "flac", "wav", "flac"])
    code, out = command(manifest, tmp_path / "cache")
    assert code == 0 and out.strip() == f"4 rows -> {tmp_path}/cache/manifest.parquet"
    files, cached = read_manifest(manifest), read_manifest(tmp_path / "cache" / "manifest.parquet")
    assert set(cached["path"]) == {str(tmp_path / "cache" / "audio")} and cached["row"].to_list() == [0, 1, 2, 3]
    assert cached.drop("path", "row").equals(files.drop("path"))
    for rate in (None, 6_000):
        wanted, found = RowReader(files, rate), RowReader(cached, rate)
        for index in range(4):
            np.testing.assert_array_equal(found[index], wanted[index])
    again = cache_audio(cached, tmp_path / "again")  # of a cache, as of files
    assert not again
    assert (tmp_path / "again/audio/data.bin").read_bytes() == (tmp_path / "cache/audio/data.bin").read_bytes()


def test_what_is_rounded_is_counted(tmp_path):
    manifest = write_files(tmp_path / "files", ["flac", "aiff"])
    assert "; 1 rows are not 16-bit" in command(manifest, tmp_path / "cache")[1]
    assert "; 2 rows are not 16-bit" in command(manifest, tmp_path / "slow", "--rate", 6_000)[1]
    slow = read_manifest(tmp_path / "slow" / "manifest.parquet")
    assert set(slow["rate"]) == {6_000}
    wanted, found = RowReader(read_manifest(manifest), 6_000), RowReader(slow, 6_000)
    for index in range(2):
        assert np.abs(found[index] - wanted[index].clip(-1, 32767 / 32768)).max() <= 0.5 / 32768


def test_nothing_is_written_when_a_row_is_at_fault(tmp_path):
    manifest = write_files(tmp_path / "files", ["flac", "flac"])
    (tmp_path / "files" / "1.flac").write_bytes((tmp_path / "files" / "1.flac").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"row 1: .*1\.flac"):
        cache_audio(read_manifest(manifest), tmp_path / "cache")
    assert os.listdir(tmp_path) == ["files"]
    assert "holds the manifest to read from" in command(manifest, tmp_path / "files")[1]
    with StoreWriter(tmp_path / "features") as store:
        store.add(np.zeros((3, 2)))
    table = polars.DataFrame({"id": "a", "path": str(tmp_path / "features"), "row": 0, "frames": 3})
    with pytest.raises(InputError, match=r"row a holds float16 of shape \(3, 2\); only audio is cached"):
        cache_audio(table, tmp_path / "cache")
    with pytest.raises(InputError, match="has no column 'rate'"):
        cache_audio(table, tmp_path / "cache", 8_000)
