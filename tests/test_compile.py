"""Compiled training: the same losses, and nothing is compiled after the first epoch over real lengths."""

import json

import numpy as np
import pytest
import torch
from conftest import DENSE

from seqformer.train import compile as compiler
from seqformer.train import loop
from seqformer.train.crossval import train_run

torch.set_num_threads(1)

SMALL = {"name": "squeezeformer", "dim": 8, "depth": 1, "heads": 2, "kernel": 3, "reduce_at": None, "stem": "linear"}
# Without dropout, whose draws depend on how far a batch is padded.
QUIET = {"dropout": 0.0}


def steps_of(run) -> list[dict]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


@pytest.fixture
def plain(tmp_path):
    """Rows of 4 features in lengths of a skewed mix, as those of utterances, and a run over them."""
    import seqformer

    rng, table = np.random.default_rng(0), []
    with seqformer.StoreWriter(tmp_path / "store", "float32") as store:
        for row in range(60):
            frames = int(np.clip(rng.lognormal(3.4, 0.5), 8, 90))
            x = rng.standard_normal((frames, 4)).astype(np.float32)
            place = {"id": f"row{row:02d}", "path": "store", "row": store.add(x), "frames": frames}
            table.append(place | {"text": "ab" * (1 + row % 2), "half": int(row % 10 == 0)})
    seqformer.write_manifest(table, tmp_path / "manifest.parquet")
    return {
        "run": "eager",
        "data": {"manifest": str(tmp_path / "manifest.parquet"), "batch_frames": 400, "max_items": 12},
        "folds": {"kind": "column", "by": "half", "use": 1},
        "text": {"kind": "chars"},
        "frontend": DENSE["frontend"],
        "backbone": SMALL | QUIET,
        "head": {"name": "ctc"},
        "train": {"epochs": 3, "device": "cpu", "threads": 1},
        "metric": {"name": "cer"},
    }


def compared(plain: dict, root, monkeypatch) -> list[int]:
    """Train on the same batches, compiled and not: the losses are the same; returns the graphs compiled by epoch."""
    torch.compiler.reset()
    plain = plain | {"train": plain["train"] | {"compile": True}}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compile_backbone", lambda *_: None)
        train_run(plain, root, quiet=True)
    train_run(plain | {"run": "compiled"}, root, quiet=True)
    eager, compiled = steps_of(root / "eager"), steps_of(root / "compiled")
    assert [step["loss"] for step in compiled] == pytest.approx([step["loss"] for step in eager], rel=1e-5, abs=1e-5)
    assert not any(step["recompiles"] for step in eager)
    return [sum(step["recompiles"] for step in compiled if step["epoch"] == epoch) for epoch in range(3)]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute:UserWarning"
)  # which torch looks at, and hides from all but pytest
def test_no_compilation_after_the_first_epoch(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "BACKEND", "eager")
    first, *later = compared(plain, tmp_path, monkeypatch)
    assert 1 <= first <= 2 and later == [0, 0]
