"""Batches come in order and alike, whoever reads them and wherever they are copied."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import polars
import pytest
import torch

from seqformer import Batch, SequenceDataset, StoreWriter
from seqformer.data.loader import copied_ahead, load_batches


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SequenceDataset:
    folder = tmp_path_factory.mktemp("rows")
    with StoreWriter(folder / "store") as store:
        for row in range(40):
            store.add(np.full((1 + row % 7, 2), row))
    columns = {"id": [str(row) for row in range(40)], "path": str(folder / "store"), "row": range(40)}
    return SequenceDataset(polars.DataFrame(columns | {"frames": [1 + row % 7 for row in range(40)]}))


def keys(taken: list, epochs: int = 3):
    """Those of some epochs, one after another; notes how many were taken."""
    for epoch in range(epochs):
        for first in range(0, 40, 8):
            taken.append(epoch)
            yield np.stack([np.full(8, epoch), (np.arange(first, first + 8) * (epoch + 1)) % 40], axis=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_reads_many_epochs(data, workers):
    taken, wanted = [], [[str(row) for row in batch[:, 1]] for batch in keys([])]
    found = load_batches(data, keys(taken), workers, prefetch=3)
    assert next(found).ids == wanted[0] and len(taken) == 1 + 3 * workers * bool(workers)  # and no further ahead
    assert [batch.ids for batch in found] == wanted[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu_as_they_left(data):
    device = torch.device("cuda")
    wanted = list(load_batches(data, keys([])))
    for given in (load_batches(data, keys([]), 2, device), copied_ahead(iter(wanted), device)):
        for batch, other in zip(given, wanted, strict=True):
            torch.cuda._sleep(10**6)  # work that is not done when the next batch is asked for
            assert batch.ids == other.ids and batch.mask.device.type == batch.weight.device.type == "cpu"
            assert batch.inputs["x"].is_cuda and torch.equal(batch.inputs["x"].cpu(), other.inputs["x"])
    assert not list(copied_ahead([], device))


def test_a_copy_is_waited_for_before_the_next_is_asked_for(data, monkeypatch):
    """On a pretended GPU: what happens on its two streams, in order."""
    events = []
    working = SimpleNamespace(wait_stream=lambda stream: events.append("wait"))
    pretended = SimpleNamespace(Stream=lambda device: None, stream=nullcontext, current_stream=lambda device: working)
    monkeypatch.setattr(torch, "cuda", pretended)
    monkeypatch.setattr(Batch, "to", lambda batch, device: events.append(f"copy {batch.ids[0]}") or batch)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: events.append("keep"))
    for batch in copied_ahead(load_batches(data, list(keys([]))[:3]), torch.device("cpu")):
        events.append(f"work {batch.ids[0]}")
    wanted = [
        "copy 0",
        "wait",
        "copy 8",
        "keep",
        "work 0",
        "wait",
        "copy 16",
        "keep",
        "work 8",
        "wait",
        "keep",
        "work 16",
    ]
    assert events == wanted
