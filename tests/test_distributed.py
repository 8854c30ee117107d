"""Several processes: no hang on uneven data, the metric of one process, BatchNorm over all frames, exact resuming."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from conftest import DENSE, TINY, change, poisoned
from lightning_fabric import Fabric

import seqformer
from seqformer.checkpoint import FILES, load_weights
from seqformer.config import Data, Train, write_config
from seqformer.data.dataset import SequenceDataset
from seqformer.data.sampler import plan_batches
from seqformer.data.targets import Classes, Targets
from seqformer.nn.norm import MaskedBatchNorm
from seqformer.predict import predict_dataset
from seqformer.train.crossval import make_fabric


def launcher(world: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each of its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    shared |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1}
    return [{key: str(value) for key, value in (shared | {"RANK": r, "LOCAL_RANK": r}).items()} for r in range(world)]


def test_statistics_are_of_all_frames(server, tmp_path):
    server.train("test_distributed:normalize", tmp_path, launcher(2))


def normalize(root: Path) -> None:
    """In each of two processes: BatchNorm of its items, one of them empty, against one process with all of them."""
    fabric = distributed()
    torch.manual_seed(0)
    x, mask = torch.randn(5, 9, 4), torch.arange(9) < torch.tensor([9, 4, 1, 7, 0])[:, None]
    share = (slice(0, 2), slice(2, 5))[fabric.global_rank]
    norm = MaskedBatchNorm(4)
    part = x[share].clone().requires_grad_()
    y = norm(part, mask[share])
    (y.square() * mask[share, :, None] * torch.linspace(1, 2, 4)).sum().backward()

    real = torch.nn.BatchNorm1d(4, momentum=norm.momentum)  # of the real frames of all items, flattened
    whole = x.clone().requires_grad_()
    wanted = real(whole[mask])
    (wanted.square() * torch.linspace(1, 2, 4)).sum().backward()
    full = torch.zeros_like(x)
    full[mask] = wanted.detach()
    torch.testing.assert_close(y.detach() * mask[share, :, None], full[share], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.grad, whole.grad[share], rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(real, name), rtol=1e-5, atol=1e-6)


def distributed() -> Fabric:
    """The fabric of a run whose config knows nothing of the launcher."""
    fabric = make_fabric(Train(epochs=1, device="cpu", threads=1))
    assert fabric.world_size == 2
    return fabric


def test_uneven_numbers_of_items_predict_as_one_process(server, tmp_path):
    server.train("test_distributed:predict", tmp_path, launcher(2))


def predict(root: Path) -> None:
    """1 to 17 items on two processes: each predicted once, and the same loss, as in one process."""
    fabric, rng = distributed(), np.random.default_rng(0)
    backbone = {"name": "squeezeformer", "dim": 8, "depth": 1, "heads": 2, "kernel": 3, "stem": "linear"}
    torch.manual_seed(0)
    model = seqformer.create_model({"name": "dense", "channels": 3}, backbone, {"name": "classify", "vocab": 3})
    targets = Targets({"label": Classes(["a", "b", "c"])}, "")
    folder = root / f"store{fabric.global_rank}"
    lengths = rng.integers(1, 30, 17).tolist()
    with seqformer.StoreWriter(folder, "float32") as store:
        rows = [{"id": f"r{n}", "path": str(folder), "row": store.add(rng.standard_normal((n_frames, 3)))}
                for n, n_frames in enumerate(lengths)]  # fmt: skip
    table = polars.DataFrame(rows).with_columns(frames=polars.Series(lengths), label=polars.lit("b"))
    for count in range(1, 18):
        dataset, data = SequenceDataset(table.head(count), targets), Data("", batch_frames=40)
        found, loss = predict_dataset(model, dataset, targets, data, fabric)
        wanted, wanted_loss = predict_dataset(model, dataset, targets, data)
        assert found["classify"].keys() == wanted["classify"].keys() and len(wanted["classify"]) == count
        for row_id, value in wanted["classify"].items():
            np.testing.assert_allclose(found["classify"][row_id], value, atol=1e-6)
        assert abs(loss - wanted_loss) < 1e-6


def test_batches_keep_processes_in_step():
    """For 1 to 17 items on 1 to 4 processes: every row is in some batch, and all have as many batches."""
    for items in range(1, 18):
        for world in range(1, 5):
            batches = plan_batches(np.full(items, 10), 20, 9, [0], 0, world)
            assert len(batches) % world == 0 and set(np.concatenate(batches).tolist()) == set(range(items))


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> bytes:
    return b"".join((run / "fold0" / "last" / name).read_bytes() for name in FILES)


@pytest.fixture(scope="module")
def pair(server, corpus, tmp_path_factory) -> tuple[dict, Path, int]:
    """A run on two processes: its config, its folder, and the calls of the first that change files."""
    root = tmp_path_factory.mktemp("pair")
    # 20 rows to train on in an odd number of batches; both folds, so that a second model is set up.
    plain = change(TINY, data__manifest=str(corpus), folds__use="all", train__epochs=2, train__accumulate=1)
    server.start(plain, root, launcher(2), die_at=-1)
    assert server.wait(120) == [0, 0], (root / "output0").read_text() + (root / "output1").read_text()
    return plain, root / "tiny"


def test_two_processes_train(pair):
    run = pair[1]
    records = [record for record in log_of(run) if "loss" in record]
    said = (run.parent / "output0").read_text()
    assert "FutureWarning" not in said and "DeprecationWarning" not in said
    steps = [record["step"] for record in records if record["fold"] == "0"]
    assert steps == list(range(1, len(steps) + 1))  # one process writes
    assert json.loads((run / "fold0/last/state.json").read_text())["world"] == 2
    table = polars.read_parquet(run / "oof.parquet")
    assert table.height == table["id"].n_unique() == 40
    assert all(tensor.isfinite().all() for tensor in load_weights(run / "fold0" / "last").values())


def test_a_bad_row_of_any_process_is_named(server, tiny, tmp_path):
    """Both processes skip the step, and the one that writes names the row, whoever read it."""
    rows = [3, 21]
    plain = tiny(data__manifest=str(poisoned(tmp_path / "bad", rows)), augment=[], train__epochs=2, **DENSE)
    server.train(plain, tmp_path, launcher(2))
    named = [record["skipped"] for record in log_of(tmp_path / "tiny") if "skipped" in record]
    assert {ids[0] for ids in named} == {"row03", "row21"} and len(named) >= 3  # a step may meet both
    assert all(tensor.isfinite().all() for tensor in load_weights(tmp_path / "tiny" / "fold0" / "last").values())


@pytest.mark.slow
def test_torchrun(tiny, tmp_path):
    """The command of the README: torchrun starts the program twice, and the config says nothing of it."""
    (tmp_path / "config.yaml").write_text(write_config(tiny(train__epochs=1, augment=[])))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "seqformer",
    ]
    done = subprocess.run(
        [*command, "train", "config.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert polars.read_parquet(tmp_path / "runs" / "tiny" / "oof.parquet").height == 20
    assert done.stdout.count("fold 0  epoch 1/1") == 1


def test_metric_is_that_of_one_process(server, pair, tmp_path):
    """The same weights validated by one process."""
    plain, run = pair
    shutil.copytree(run, tmp_path / "tiny")
    for fold in (0, 1):
        (tmp_path / "tiny" / f"fold{fold}" / "done.json").unlink()
    server.train(plain, tmp_path)
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "tiny", run))
    assert one["out_of_fold"] == pytest.approx(two["out_of_fold"], abs=1e-6) and one["rows"] == two["rows"]
    assert weights_of(tmp_path / "tiny") == weights_of(run)


def test_killed_and_resumed_on_two_and_on_one(server, pair, tmp_path):
    """Bit for bit on as many processes; with another number it goes on from the same share of the epoch."""
    plain, run = pair
    server.start(plain, tmp_path, launcher(2), die_at=40)
    codes = server.wait(120)
    assert codes[0] == -9 and codes[1] != 0
    shutil.copytree(tmp_path / "tiny", tmp_path / "one" / "tiny")
    server.train(plain, tmp_path, launcher(2))
    assert weights_of(tmp_path / "tiny") == weights_of(run)
    timed = ("frames_per_s", "wait", "mfu", "seconds")
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in log_of(folder)]
        for folder in (tmp_path / "tiny", run)
    ]
    assert logs[0] == logs[1]
    server.train(plain, tmp_path / "one")
    assert (tmp_path / "one" / "tiny" / "oof.parquet").exists()
