"""Recordings read one by one, in random order: files decoded, and rows of a manifest out of files, tars and a store."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars

from benchmarks.measure import Case
from benchmarks.recordings import recordings, write_archives, write_files, write_store
from benchmarks.setting import Setting
from seqformer import RowReader, read_audio


def soundfile() -> Callable[[str], object]:
    import soundfile

    return lambda path: soundfile.read(path, dtype="float32")


def torchaudio() -> Callable[[str], object]:
    import torchaudio

    return torchaudio.load


def librosa() -> Callable[[str], object]:
    import librosa

    return lambda path: librosa.load(path, sr=None)


PEERS = {"soundfile": soundfile, "torchaudio load": torchaudio, "librosa": librosa}


def cases(setting: Setting) -> Iterator[list[Case]]:
    found = recordings(setting, 4 if setting.quick else 100)
    hours = sum(len(samples) / rate for samples, rate, _ in found) / 3600
    order = np.random.default_rng(0).permutation(len(found)).tolist()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tables = {ending: write_files(folder, found, ending) for ending in ("flac", "wav")}
        readers = {"seqformer": read_audio} | setting.built(PEERS)
        for ending, table in tables.items():
            paths = table["path"].to_list()
            what = f"decode, {len(found)} files of {ending}"
            yield [Case(what, who, partial(each, read, paths), hours, "h of audio/s") for who, read in readers.items()]
        rows = {
            "store": write_store(folder, found),
            "tar of FLAC": write_archives(folder, tables["flac"]),
            "FLAC files": tables["flac"],
            "WAV files": tables["wav"],
        }
        os.sync()  # what is not on disk cannot be dropped
        for state, before in (("in memory", None), ("dropped from memory", lambda: forget(folder))):
            also = {"count": len(found), "unit": "rows/s", "wall": True, "before": before}
            yield [
                Case(
                    f"{len(found)} rows {state}",
                    f"seqformer, {name}",
                    partial(read_rows, table, order),
                    **also,
                )
                for name, table in rows.items()
            ]


def read_rows(table: polars.DataFrame, order: Sequence[int]) -> None:
    """By a reader of its own: one that has the store mapped would keep it in memory."""
    each(RowReader(table).__getitem__, order)


def each(read: Callable, items: Sequence) -> None:
    """Read one after another, keeping none."""
    for item in items:
        read(item)


def forget(folder: Path) -> None:
    """Drop the files of a folder from the system's memory, where it lets us."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
