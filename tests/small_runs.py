"""Small trained runs of labelled feature sequences, for tests of what is done with finished runs."""

from pathlib import Path

import numpy as np

import seqformer
from seqformer.train.crossval import train_run

ROWS = 24


def write_rows(folder: Path, rows: range = range(ROWS), prefix: str = "row") -> Path:
    """A manifest of (T, 4) features: a class, a value a frame, and a speaker of each row."""
    rng, table = np.random.default_rng(rows.start), []
    with seqformer.StoreWriter(folder / f"{prefix}s", "float32") as store:
        for row in rows:
            x = rng.standard_normal((rng.integers(6, 14), 4)).astype(np.float32)
            x[:, 0] += 2 * (row % 3)
            place = {"id": f"{prefix}{row:02d}", "path": f"{prefix}s", "row": store.add(x), "frames": len(x)}
            table.append(place | {"label": "abc"[row % 3], "level": x[:, 1].tolist(), "speaker": f"{prefix}{row // 2}"})
    seqformer.write_manifest(table, folder / f"{prefix}s.parquet")
    return folder / f"{prefix}s.parquet"


def small(manifest: Path, **changes) -> dict:
    """The config of a run in 3 folds that trains in half a second."""
    plain = {
        "run": "small",
        "data": {"manifest": str(manifest), "batch_frames": 300},
        "folds": {"kind": "kfold", "n": 3, "seed": 5},
        "frontend": {"name": "dense", "channels": 4},
        "backbone": {"name": "squeezeformer", "dim": 8, "depth": 1, "heads": 1, "kernel": 3, "reduce_at": None,
                     "recover_at": None, "stem": "linear"},
        "head": {"name": "classify"},
        "optim": {"lr": 0.01},
        "train": {"epochs": 1, "device": "cpu", "threads": 1},
        "metric": {"name": "accuracy"},
    }  # fmt: skip
    return plain | changes


LEVELS = {"head": {"name": "framewise", "target": "level", "loss": "mae"}, "metric": {"name": "mae"}}


def train(root: Path, plain: dict) -> Path:
    train_run(plain, root, quiet=True)
    return root / plain["run"]
