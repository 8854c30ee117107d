"""An audio file is read whole or refused by name, whatever its format."""

import shutil
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile

from seqformer import InputError, RowReader, read_audio, read_pcm, read_pcm_files, resample
from seqformer.data.audio import audio_facts

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(20_000) * 0.05)).astype(np.float32)
FORMATS = {
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "24.wav": ("WAV", "PCM_24"), "ulaw.wav": ("WAV", "ULAW"),
    "x.wav": ("WAVEX", "PCM_16"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", None), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"), "caf": ("CAF", "PCM_16"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audio")
    for ending, (form, subtype) in FORMATS.items():
        soundfile.write(folder / f"a.{ending}", TONE, RATE, format=form, subtype=subtype)
    return {ending: folder / f"a.{ending}" for ending in FORMATS}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_read_whole(files, ending):
    samples, rate = read_audio(files[ending])
    pcm, pcm_rate = read_pcm(files[ending])
    assert (samples.dtype, pcm.dtype, rate, pcm_rate) == (np.float32, np.int16, RATE, RATE)
    assert len(samples) == len(pcm) == len(TONE) and audio_facts(files[ending]) == {"frames": len(TONE), "rate": RATE}
    lossy = ending in ("opus", "ogg", "mp3", "ulaw.wav")
    assert np.corrcoef(samples, TONE)[0, 1] > 0.98 if lossy else np.abs(samples - TONE).max() < 1e-4
    assert np.abs(samples - pcm / 32768).max() < 1e-3


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.99])
def test_every_cut_file_is_refused(files, tmp_path, ending, share, capfd):
    data = files[ending].read_bytes()
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(data[: int(len(data) * share)])
    for read in (read_audio, read_pcm):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def with_header(data: bytes, at: bytes, size: int) -> bytes:
    place = data.index(at) + 4
    return data[:place] + size.to_bytes(4, "little") + data[place + 4 :]


def test_wav_written_to_a_pipe_and_with_other_chunks(files, tmp_path):
    data = files["wav"].read_bytes()
    for size in (0xFFFF_FFFF, 0x7FFF_F000):
        (tmp_path / "pipe.wav").write_bytes(with_header(with_header(data, b"RIFF", size), b"data", size))
        assert len(read_audio(tmp_path / "pipe.wav")[0]) == len(TONE)
    extra = b"LIST" + (5).to_bytes(4, "little") + b"hello\0"
    fmt_end = data.index(b"data")
    (tmp_path / "more.wav").write_bytes(data[:fmt_end] + extra + data[fmt_end:] + extra)
    assert len(read_audio(tmp_path / "more.wav")[0]) == len(TONE)
    soundfile.write(tmp_path / "big.wav", TONE, RATE, format="WAV", subtype="PCM_16", endian="BIG")
    big = (tmp_path / "big.wav").read_bytes()
    assert big.startswith(b"RIFX") and len(read_audio(tmp_path / "big.wav")[0]) == len(TONE)
    (tmp_path / "big.wav").write_bytes(big[:-100])
    with pytest.raises(InputError, match=r"big\.wav: the file is cut short"):
        read_audio(tmp_path / "big.wav")


def test_flac_without_a_length_is_refused(files, tmp_path):
    data = bytearray(files["flac"].read_bytes())
    data[21] &= 0xF0  # STREAMINFO: the lower 36 bits of bytes 21-25 count the samples
    data[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(data)
    with pytest.raises(InputError, match=r"pipe\.flac: the file does not state its length"):
        read_audio(tmp_path / "pipe.flac")


def test_channels_are_averaged_or_refused(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.stack([TONE, -TONE / 2], axis=1), RATE)
    samples, _ = read_audio(tmp_path / "two.wav")
    np.testing.assert_allclose(samples, TONE / 4, atol=1e-4)
    with pytest.raises(InputError, match=r"two\.wav: 2 channels; mix them down to one"):
        read_pcm(tmp_path / "two.wav")


def test_useless_files(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio" * 100)
    (tmp_path / "a.raw").write_bytes(b"no header" * 100)
    soundfile.write(tmp_path / "nan.wav", np.full(99, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    (tmp_path / "folder.wav").mkdir()
    for name in ("a.wav", "a.raw", "nan.wav", "none.wav", "folder.wav", "gone.wav"):
        for read in (read_audio, read_pcm) if name == "nan.wav" else (read_audio, read_pcm, audio_facts):
            with pytest.raises(InputError) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_random_damage_never_crashes(files, tmp_path, capfd):
    rng = np.random.default_rng(0)
    for ending in ("wav", "flac", "opus", "ogg", "mp3"):
        data = files[ending].read_bytes()
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data) if rng.random() < 0.5 else 60, 3):
                broken[place] = rng.integers(256)
            (tmp_path / f"broken.{ending}").write_bytes(broken)
            try:
                samples, rate = read_audio(tmp_path / f"broken.{ending}")
                assert np.isfinite(samples).all() and rate > 0
            except InputError as error:
                assert f"broken.{ending}: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("wanted", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("frames", [1, 441, 9_999])
def test_resampled_length_is_the_ceiling(wanted, frames):
    found = resample(TONE[:frames], RATE, wanted)
    assert found.dtype == np.float32 and len(found) == -(-frames * wanted // RATE)


def test_many_files_in_order_with_their_errors(files, tmp_path):
    shutil.copy(files["wav"], tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_bytes(files["wav"].read_bytes()[:-1])
    paths = [tmp_path / ("bad.wav" if number % 7 == 3 else "good.wav") for number in range(60)]
    found = list(read_pcm_files(paths, 8_000))
    assert len(found) == 60
    for number, answer in enumerate(found):
        if number % 7 == 3:
            assert isinstance(answer, InputError) and "bad.wav: the file is cut short" in str(answer)
        else:
            assert answer[0].dtype == np.int16 and (len(answer[0]), answer[1]) == (10_000, 8_000)


def rows(*paths: Path, frames: int = len(TONE), rate: int = RATE) -> polars.DataFrame:
    ids = [f"row{number}" for number in range(len(paths))]
    return polars.DataFrame({"id": ids, "path": list(map(str, paths)), "frames": frames, "rate": rate})


def test_a_row_that_cannot_be_read_is_named_with_its_file(files, tmp_path):
    (tmp_path / "cut.wav").write_bytes(files["wav"].read_bytes()[:-500])
    reader = RowReader(rows(files["flac"], tmp_path / "cut.wav", tmp_path / "gone.wav"), rate=8_000)
    assert len(reader[0]) == reader.frames()[0] == 10_000
    with pytest.raises(InputError, match=r"row row1: .*cut\.wav: the file is cut short"):
        reader[1]
    with pytest.raises(InputError, match=r"row row2: no audio file at .*gone\.wav"):
        reader[2]
    with pytest.raises(InputError, match=r"row row0: .*a\.flac holds 20000 frames, the manifest says 19999"):
        RowReader(rows(files["flac"], frames=19_999))[0]
    with pytest.raises(InputError, match=r"row row0: .*a\.flac has 16000 samples a second, the manifest says 8000"):
        RowReader(rows(files["flac"], rate=8_000))[0]
