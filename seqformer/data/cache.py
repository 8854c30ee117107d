"""Audio decoded once: a store of 16-bit samples, so that workers only read and copy."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqformer.data.audio import read_ahead, to_int16
from seqformer.data.dataset import RowReader
from seqformer.data.manifest import write_manifest
from seqformer.data.store import StoreWriter
from seqformer.errors import InputError

if TYPE_CHECKING:
    import polars


def cache_audio(table: "polars.DataFrame", out: Path, rate: int | None = None) -> int:
    """Write ``out/audio``, the samples of all rows, and ``out/manifest.parquet``, the same rows reading from there.

    What is read is the same to the last bit where files hold 16-bit samples, of one channel, at ``rate`` Hz (default:
    their own); all others are rounded to 16 bits, and this many rows are returned. Raises InputError when a row cannot
    be read or is no audio, and nothing is written then.
    """
    import polars

    if rate is not None and "rate" not in table.columns:
        raise InputError(f"--rate {rate}: the manifest has no column 'rate' to come from")
    reader, frames, rounded = RowReader(table, rate), [], 0
    with StoreWriter(out / "audio", "int16") as store:
        for row_id, samples in zip(table["id"], read_ahead(reader.__getitem__, range(len(reader))), strict=True):
            if samples.ndim != 1 or samples.dtype != np.float32:
                raise InputError(f"row {row_id} holds {samples.dtype} of shape {samples.shape}; only audio is cached")
            kept = to_int16(samples * 32768)
            rounded += not np.array_equal(kept.astype(np.float32) / 32768, samples)
            store.add(kept)
            frames.append(len(kept))
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new store
    columns = {"path": polars.lit("audio"), "row": polars.Series(range(table.height)), "frames": polars.Series(frames)}
    columns |= {} if rate is None else {"rate": polars.lit(rate)}
    write_manifest(table.drop("offset", "bytes", strict=False).with_columns(**columns), out / "manifest.parquet")
    return rounded
