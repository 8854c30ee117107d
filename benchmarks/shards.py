"""Rows a second out of tar archives, out of loose files and out of a store of samples, shuffled, in one run.

``python -m benchmarks.shards data/librispeech_mini/manifest.parquet --rows 500``. What is read is written to a
temporary folder first, as FLAC and as WAV. Each round reads all three, once with the files in memory and once with them
dropped from it (where the system lets us), so that a busy machine is busy for all of them.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import polars
import soundfile

from seqformer import RowReader, StoreWriter, read_manifest
from seqformer.data.shards import index_shards


def write_copies(table: polars.DataFrame, folder: Path, ending: str, per_archive: int) -> dict[str, polars.DataFrame]:
    """The same rows as loose files, in archives and in a store."""
    reader, loose, stored = RowReader(table), [], []
    (folder / "files").mkdir()
    with StoreWriter(folder / "store", "int16") as store:
        for index, row in enumerate(table.select("id", "frames", "rate").iter_rows(named=True)):
            samples = (reader[index] * 32768).astype(np.int16)
            soundfile.write(folder / "files" / f"{row['id']}.{ending}", samples, row["rate"], subtype="PCM_16")
            (folder / "files" / f"{row['id']}.txt").write_text("text")
            loose.append(row | {"path": str(folder / "files" / f"{row['id']}.{ending}")})
            stored.append(row | {"path": str(folder / "store"), "row": store.add(samples)})
    (folder / "tars").mkdir()
    for start in range(0, len(loose), per_archive):
        with tarfile.open(folder / "tars" / f"shard-{start:06d}.tar", "w:") as archive:
            for row in loose[start : start + per_archive]:
                for end in (ending, "txt"):
                    archive.add(folder / "files" / f"{row['id']}.{end}", f"{row['id']}.{end}")
    rows = index_shards(folder / "tars", folder.parent / "elsewhere.parquet")
    return {"files": polars.DataFrame(loose), "tar": polars.DataFrame(rows), "store": polars.DataFrame(stored)}


def forget(folder: Path) -> None:
    """Drop the files of a folder from the system's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def rows_per_second(table: polars.DataFrame, order: np.ndarray) -> float:
    reader, start = RowReader(table), time.perf_counter()
    for index in order.tolist():
        reader[index]
    return len(order) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    for option, default in (("--rows", 500), ("--rounds", 5), ("--per-archive", 100)):
        parser.add_argument(option, type=int, default=default)
    given = parser.parse_args()
    table = read_manifest(given.manifest).head(given.rows)
    seconds = (table["frames"] / table["rate"]).mean()
    print(f"{table.height} rows of {seconds:.1f} s on average; median rows/s of {given.rounds} rounds")
    for ending in ("flac", "wav"):
        with tempfile.TemporaryDirectory(dir=".") as place:
            copies = write_copies(table, Path(place), ending, given.per_archive)
            rng, found = np.random.default_rng(0), {}
            for _ in range(given.rounds):
                order = rng.permutation(table.height)
                for state in ("in memory", "dropped"):
                    for name, rows in copies.items():
                        if state == "dropped":
                            forget(Path(place))
                        found.setdefault((state, name), []).append(rows_per_second(rows, order))
            for (state, name), values in found.items():
                print(f"{ending:5} {state:10} {name:6} {statistics.median(values):8.0f}")


if __name__ == "__main__":
    main()
