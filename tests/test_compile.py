"""Compiled training: the same losses, one graph for batches of all sizes, and a resume as exact as any."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import DENSE

from seqformer.nn.depthwise import as_image, depthwise
from seqformer.train import compile as compiler
from seqformer.train import loop
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer

torch.set_num_threads(1)

SMALL = {"name": "squeezeformer", "dim": 8, "depth": 1, "heads": 2, "kernel": 3, "reduce_at": None, "stem": "linear"}
# Without dropout, whose draws depend on how far a batch is padded.
QUIET = {"dropout": 0.0}


def steps_of(run) -> list[dict]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


@pytest.fixture
def plain(tmp_path):
    """Rows of 4 features in lengths of a skewed mix, as those of utterances, and a run over them.

    One row is so long that its batch has no other; batches of short rows have more than 16.
    """
    import seqformer

    rng, table = np.random.default_rng(0), []
    with seqformer.StoreWriter(tmp_path / "store", "float32") as store:
        for row in range(60):
            frames = int(np.clip(rng.lognormal(3.4, 0.5), 8, 90)) if row != 5 else 400
            x = rng.standard_normal((frames, 4)).astype(np.float32)
            place = {"id": f"row{row:02d}", "path": "store", "row": store.add(x), "frames": frames}
            table.append(place | {"text": "ab" * (1 + row % 2), "half": int(row % 10 == 0)})
    seqformer.write_manifest(table, tmp_path / "manifest.parquet")
    return {
        "run": "eager",
        "data": {"manifest": str(tmp_path / "manifest.parquet"), "batch_frames": 600, "max_items": 24},
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


# torch looks at it, and hides the warning from all but pytest
ignoring = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@ignoring
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_for_all_lengths(plain, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(compiler, "BACKEND", backend)
    assert compared(plain, tmp_path, monkeypatch) == [1, 0, 0]


@ignoring
@pytest.mark.slow
def test_compiled_training_resumes_bit_for_bit(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "BACKEND", "eager")
    plain = plain | {"backbone": SMALL, "train": plain["train"] | {"epochs": 2, "compile": True, "save_every": 2}}
    train_run(plain | {"run": "whole"}, tmp_path, quiet=True)
    whole, calls, update = steps_of(tmp_path / "whole"), [], FoldTrainer.update

    def stopped(self, *given):
        calls.append(1)
        if len(calls) == len(whole) // 2:
            raise KeyboardInterrupt
        update(self, *given)

    monkeypatch.setattr(FoldTrainer, "update", stopped)
    for begin in (lambda: pytest.raises(KeyboardInterrupt), nullcontext):
        with begin():
            train_run(plain | {"run": "stopped"}, tmp_path, quiet=True)
    assert {step["step"]: step["loss"] for step in steps_of(tmp_path / "stopped")} == {
        step["step"]: step["loss"] for step in whole
    }


def test_compiled_depthwise_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    for shape, stride, bias in (((3, 20, 6), 1, True), ((2, 9, 1), 2, False), ((1, 5, 4), 1, True)):
        drawn = [torch.randn(size, generator=generator) for size in (shape, (shape[2], 1, 1, 5), shape[2:])]
        x, weight, added = (each.requires_grad_() for each in drawn)
        inputs = [x, weight, added] if bias else [x, weight]
        given = (x, weight, added if bias else None, stride)
        torch.library.opcheck(depthwise, given)
        image = torch.nn.functional.conv2d(as_image(x), weight, given[2], (1, stride), groups=shape[2])
        found, wanted = depthwise(*given), image.squeeze(2).transpose(1, 2)
        to_found, to_wanted = (torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted))
        torch.testing.assert_close((found, *to_found), (wanted, *to_wanted))
