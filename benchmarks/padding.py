"""Share of frames and of target units that is padding, on the lengths of a real manifest and on many like them.

``python -m benchmarks.padding data/librispeech_mini/manifest.parquet --where train-mini``. Many: 281,241 rows, as
LibriSpeech has to train on, drawn from the manifest's own with 5 % of jitter. Each is planned as it is, played at three
speeds that the planner does not know and does know, and by units as well, which are letters here.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.random import default_rng

from seqformer import read_manifest
from seqformer.data.sampler import padding_share, plan_batches

ROWS, SPEEDS, EPOCHS = 281_241, [0.9, 1.0, 1.1], 3


def shares(frames: np.ndarray, units: np.ndarray, budget: int, max_units: int) -> dict[str, list[float]]:
    """Padding of frames and of units by what is planned, each a mean over epochs."""
    found: dict[str, list] = {}
    for epoch in range(EPOCHS):
        played = (frames / default_rng([1, epoch]).choice(SPEEDS, len(frames))).astype(np.int64)
        by_units = {"units": units, "max_units": max_units}
        cases = {"as it is": (frames, frames, {}), "speed, not known": (frames, played, {})}
        cases |= {"speed, known": (played, played, {}), "as it is, by units": (frames, frames, by_units)}
        cases |= {"speed, known, by units": (played, played, by_units)}
        for name, (planned, read, more) in cases.items():
            plan = plan_batches(planned, budget, 512, [0, 0], epoch, **more)
            found.setdefault(name, []).append((padding_share(read, plan), padding_share(units, plan), len(plan)))
    return {name: np.mean(values, axis=0).tolist() for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--where", help="the split")
    for option, default in (("--batch-seconds", 160.0), ("--max-seconds", 20.0), ("--units-per-second", 16.0)):
        parser.add_argument(option, type=float, default=default)
    given = parser.parse_args()
    table = read_manifest(given.manifest, {"split": given.where} if given.where else None)
    table = table.filter(table["frames"] <= given.max_seconds * table["rate"])
    rate, rng = int(table["rate"][0]), default_rng(0)
    frames, units = table["frames"].to_numpy(), table["text"].str.len_chars().to_numpy().astype(np.int64)
    drawn, budget = rng.integers(0, len(frames), ROWS), round(given.batch_seconds * rate)
    many = [(values[drawn] * rng.uniform(0.95, 1.05, ROWS)).astype(np.int64).clip(1) for values in (frames, units)]
    for lengths, letters in ((frames, units), many):
        print(f"{len(lengths):,} rows of {lengths.mean() / rate:.1f} s, up to {lengths.max() / rate:.1f} s, "
              f"batches of {given.batch_seconds:g} s: padding of frames, of units")  # fmt: skip
        found = shares(lengths, letters, budget, round(given.batch_seconds * given.units_per_second))
        for name, (share, unit_share, batches) in found.items():
            print(f"  {name:24} {share:6.1%} {unit_share:6.1%}  {batches:8,.0f} batches")


if __name__ == "__main__":
    main()
