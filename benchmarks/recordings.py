"""The same recordings as loose files, in tar archives and in a store, in a temporary folder."""

import tarfile
from pathlib import Path

import numpy as np
import polars
import soundfile

from benchmarks.setting import Setting
from benchmarks.texts import made_up_texts
from seqformer import RowReader, StoreWriter, read_manifest
from seqformer.data.shards import index_shards

RATE = 16_000  # Hz
PER_ARCHIVE = 100


def recordings(setting: Setting, rows: int) -> list[tuple[np.ndarray, int, str]]:
    """(samples int16 (N,), rate in Hz, text) of the manifest's first rows, or made up: noise as long as read speech."""
    if setting.manifest is not None:
        table = read_manifest(setting.manifest).head(rows)
        reader, facts = RowReader(table), zip(table["rate"].to_list(), table["text"].to_list(), strict=True)
        return [((reader[index] * 32768).astype(np.int16), *fact) for index, fact in enumerate(facts)]
    rng, found = np.random.default_rng(0), []
    for text in made_up_texts(rows, words=3 if setting.quick else 34):
        noise = np.cumsum(rng.standard_normal(round(0.35 * len(text.split()) * RATE)))  # 12 s on average
        noise = np.diff(noise, prepend=0) + 4 * np.sin(noise / 20)
        found.append(((1000 * noise).clip(-32768, 32767).astype(np.int16), RATE, text))
    return found


def write_store(folder: Path, found: list[tuple[np.ndarray, int, str]]) -> polars.DataFrame:
    """A manifest of the recordings in an int16 store."""
    rows = []
    with StoreWriter(folder / "store", "int16") as store:
        for index, (samples, rate, text) in enumerate(found):
            place = {"id": f"{index:06d}", "path": str(folder / "store"), "row": store.add(samples)}
            rows.append(place | {"frames": len(samples), "rate": rate, "text": text})
    return polars.DataFrame(rows)


def write_files(folder: Path, found: list[tuple[np.ndarray, int, str]], ending: str) -> polars.DataFrame:
    """A manifest of the recordings as files of their own."""
    (folder / ending).mkdir()
    rows = []
    for index, (samples, rate, text) in enumerate(found):
        path = folder / ending / f"{index:06d}.{ending}"
        soundfile.write(path, samples, rate, subtype="PCM_16")
        path.with_suffix(".txt").write_text(text)
        rows.append({"id": path.stem, "path": str(path), "frames": len(samples), "rate": rate, "text": text})
    return polars.DataFrame(rows)


def write_archives(folder: Path, files: polars.DataFrame) -> polars.DataFrame:
    """A manifest of the same files in tar archives."""
    (folder / "tars").mkdir(exist_ok=True)
    paths = [Path(path) for path in files["path"]]
    for start in range(0, len(paths), PER_ARCHIVE):
        with tarfile.open(folder / "tars" / f"shard-{start:06d}.tar", "w:") as archive:
            for path in paths[start : start + PER_ARCHIVE]:
                for member in (path, path.with_suffix(".txt")):
                    archive.add(member, member.name)
    return polars.DataFrame(index_shards(folder / "tars", folder / "elsewhere" / "manifest.parquet"))
