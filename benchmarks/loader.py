"""Memory of loader workers over epochs, and seconds to plan an epoch, on manifests of up to a million rows.

``python -m benchmarks.loader --rows 1000000 --epochs 10 --workers 4``. Rows are short recordings with a text each, in a
store that is written to a temporary folder first. Memory is read when 19 of 20 batches of an epoch are done: pages that
a worker has for itself, and its share of all pages (PSS); what is mapped from files counts in the second.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars

from seqformer import SequenceDataset, StoreWriter
from seqformer.data.loader import load_batches
from seqformer.data.sampler import plan_batches
from seqformer.data.targets import fit_targets

RATE, WORDS = 8_000, ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MIB = 2**20


def write_rows(folder: Path, rows: int) -> polars.DataFrame:
    """A manifest of so many recordings of 10 to 30 ms, with texts of 3 to 12 words."""
    rng = np.random.default_rng(0)
    frames, noise = rng.integers(80, 240, rows), rng.integers(-3000, 3000, 4096).astype(np.int16)
    with StoreWriter(folder / "audio", "int16") as store:
        for count in frames.tolist():
            store.add(noise[:count])
    words = [rng.choice(WORDS, count).tolist() for count in rng.integers(3, 13, 1000)]
    texts = [" ".join(words[row % 1000]) for row in range(rows)]
    columns = {"id": [f"recording-{row:08d}" for row in range(rows)], "path": str(folder / "audio")}
    return polars.DataFrame(columns | {"row": np.arange(rows), "frames": frames, "rate": RATE, "text": texts})


def memory_of_workers() -> dict[str, float]:
    """MiB of this process's children together: their own pages, and their share of all."""
    found = {"own": 0.0, "share": 0.0}
    for child in multiprocessing.active_children():
        for line in Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            found["own"] += int(size) * 1024 / MIB * name.startswith("Private_")
            found["share"] += int(size) * 1024 / MIB * (name == "Pss:")
    return found


def epochs_of(data: SequenceDataset, epochs: int, items: int) -> Iterator[np.ndarray]:
    """Keys of all batches, an epoch after another."""
    for epoch in range(epochs):
        for batch in plan_batches(data.frames(epoch), 2**31, items, [0], epoch):
            yield np.stack([np.full_like(batch, epoch), batch], axis=1)


def watch_memory(rows: int, epochs: int, workers: int, items: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as place:
        table = write_rows(Path(place), rows)
        targets = fit_targets(table, ["text"], {"kind": "chars", "vocab": 0, "alphabet": None}, table)
        data, found = SequenceDataset(table, targets, RATE), []
        steps, start = -(-rows // items), time.perf_counter()
        for step, _ in enumerate(load_batches(data, epochs_of(data, epochs, items), workers)):
            epoch, place_in = divmod(step, steps)
            if place_in == steps * 19 // 20:
                seconds, start = time.perf_counter() - start, time.perf_counter()
                found.append(memory_of_workers())
                print(f"epoch {epoch + 1:3}: {workers} workers own {found[-1]['own']:8.1f} MiB, "
                      f"share {found[-1]['share']:8.1f} MiB, {rows / seconds:9,.0f} rows/s", flush=True)  # fmt: skip
        return found


def time_planning(rows: int, rounds: int) -> float:
    """Median seconds to plan an epoch of recordings like LibriSpeech's in batches of 160 s."""
    frames = (np.random.default_rng(0).lognormal(np.log(12), 0.45, rows).clip(1, 35) * 16_000).astype(np.int64)
    took = []
    for epoch in range(rounds):
        start = time.process_time()
        plan_batches(frames, 160 * 16_000, 512, [0], epoch)
        took.append(time.process_time() - start)
    return float(np.median(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--rows", 1_000_000), ("--epochs", 10), ("--workers", 4), ("--items", 256)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    planning = {rows: time_planning(rows, 5) for rows in (1_000, 10_000, 100_000, 1_000_000)}
    for rows, seconds in planning.items():
        print(f"planning {rows:9,} rows: {seconds:7.3f} s, {1e6 * seconds / rows:5.2f} us a row")
    memory = watch_memory(given.rows, given.epochs, given.workers, given.items)
    growth = {name: memory[-1][name] / memory[min(1, len(memory) - 1)][name] - 1 for name in ("own", "share")}
    print(f"from epoch 2 to {len(memory)}: own {growth['own']:+.1%}, share {growth['share']:+.1%}")
    if given.json:
        given.json.write_text(json.dumps({"planning_s": planning, "memory_mib": memory, "growth": growth}, indent=1))


if __name__ == "__main__":
    main()
