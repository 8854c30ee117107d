"""Speeds on the model's device: the same samples and frames as in a worker, whatever the padding."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import polars
import pytest
import torch
from conftest import RATE, write_corpus

from seqformer.augment.waveform import played as played_alone
from seqformer.augment.waveform import stretch_of
from seqformer.batch import Batch, collate
from seqformer.data.dataset import VALID, SequenceDataset
from seqformer.data.manifest import read_manifest
from seqformer.errors import InputError
from seqformer.frontends.audio import LogMel
from seqformer.frontends.gammatone import Gammatone
from seqformer.nn.paths import plain_paths
from seqformer.nn.resample import played, resampled
from seqformer.train.fold import require_players

torch.set_num_threads(1)
FACTORS = [0.9, 1.0, 1.1, 0.937]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> polars.DataFrame:
    return read_manifest(write_corpus(tmp_path_factory.mktemp("audio"), rows=16))


def both(table: polars.DataFrame, **changes) -> tuple[SequenceDataset, SequenceDataset]:
    """The same rows at the same speeds, played by a worker and left to the device."""
    return tuple(SequenceDataset(table, seed=3, speed=FACTORS, speed_on=on, **changes) for on in ("worker", "device"))


def batch_of(data: SequenceDataset, epoch: int, extra: int = 0, fill: float = 0.0) -> Batch:
    """All rows; with ``extra`` frames and samples of padding more, and ``fill`` in all of it."""
    examples = [data[epoch, row] for row in range(len(data))]
    batch = collate(examples)
    x = torch.nn.functional.pad(batch.inputs["x"], (0, extra))
    for item, example in zip(x, examples, strict=True):
        item[len(example.inputs["x"]) :] = fill
    return replace(batch, inputs=batch.inputs | {"x": x}, mask=torch.nn.functional.pad(batch.mask, (0, extra)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 0.5, 3.0, 0.937])
@pytest.mark.parametrize("paths", [nullcontext, plain_paths])
def test_samples_are_those_of_scipy(factor, device, paths):
    stretch, rng = stretch_of(factor), np.random.default_rng(0)
    for samples in (1, 2, 19, 4001):
        x = rng.uniform(-1, 1, (3, samples)).astype(np.float32)
        wanted = np.stack([played_alone(one, stretch) for one in x])
        proportion = stretch.numerator, stretch.denominator
        for size in (samples, wanted.shape[1], wanted.shape[1] + 100):  # where it is cut moves no sample
            with paths():
                found = resampled(torch.from_numpy(x).to(device), *proportion, size).cpu()
            common = min(size, wanted.shape[1])
            assert found.shape == (3, size)
            np.testing.assert_allclose(found[:, :common], wanted[:, :common], rtol=0, atol=1e-6)


@pytest.mark.parametrize("paths", [nullcontext, plain_paths])
@pytest.mark.parametrize("frontend", [LogMel(mels=8, rate=RATE), Gammatone(bands=8, rate=RATE)])
def test_the_device_plays_what_the_planner_drew_and_a_worker_would_have(table, frontend, paths):
    by_worker, by_device = both(table)
    for epoch in (0, 5):
        theirs, ours = batch_of(by_worker, epoch), batch_of(by_device, epoch)
        assert ours.mask.equal(theirs.mask) and ours.mask.sum(dim=1).tolist() == by_device.frames(epoch).tolist()
        assert len(set(ours.inputs["x_speed"][:, 1].tolist())) == 3  # 10/9 and 10/11, 1, 1000/937
        with paths():
            x = played(ours.inputs, ours.mask)
        torch.testing.assert_close(x, played(theirs.inputs, theirs.mask), rtol=0, atol=1e-6)
        with paths():
            found, wanted = frontend(ours.inputs, ours.mask), frontend(theirs.inputs, theirs.mask)
        assert found.mask.equal(wanted.mask)
        torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-4)
    as_it_is = by_device[VALID, 2]
    assert as_it_is.inputs.keys() == {"x"} and as_it_is.frames == table["frames"][2] == by_device.frames(VALID)[2]
    assert collate([as_it_is]).inputs.keys() == {"x"}


@pytest.mark.parametrize("paths", [nullcontext, plain_paths])
@pytest.mark.parametrize("fill", [0.0, float("nan"), 1e38])
def test_padding_changes_nothing(table, fill, paths):
    frontend, data = LogMel(mels=8, rate=RATE).train(), both(table)[1]
    plain, padded = batch_of(data, 0), batch_of(data, 0, extra=700, fill=fill)
    wanted = frontend(plain.inputs, plain.mask)
    with paths():
        found = frontend(padded.inputs, padded.mask)
    size = wanted.x.shape[1]
    assert not found.mask[:, size:].any() and found.mask[:, :size].equal(wanted.mask)
    torch.testing.assert_close(found.x[:, :size], wanted.x, rtol=0, atol=1e-5)
    assert not found.x[:, size:].any()
    for row in range(len(data)):
        alone = collate([data[0, row]])
        one = frontend(alone.inputs, alone.mask).x[0]
        torch.testing.assert_close(wanted.x[row, : len(one)], one, rtol=0, atol=1e-5)


def test_it_comes_after_all_augmentation(table):
    """What augmentation makes of the samples is played, at the length that it left."""

    def longer(example, seed):
        x = np.concatenate([example.inputs["x"], np.ones(seed % 50, np.float32)])
        return replace(example, inputs={"x": x}, frames=len(x))

    plain, data = SequenceDataset(table, seed=3, augment=longer), both(table, augment=longer)[1]
    for row in range(8):
        x, example = plain[1, row].inputs["x"], data[1, row]
        samples, up, down = example.inputs["x_speed"].tolist()
        assert samples == len(x) and example.frames == -(-samples * up // down)
        np.testing.assert_array_equal(example.inputs["x"], x)


def test_what_the_host_reads_stays_there(table):
    moved = batch_of(both(table)[1], 0).to(torch.device("meta"))
    assert moved.inputs["x"].is_meta and moved.mask.is_meta and not moved.inputs["x_speed"].is_meta


def test_a_frontend_that_plays_nothing_is_refused():
    class Model(torch.nn.Module):
        def __init__(self, frontend):
            super().__init__()
            self.frontend = frontend

    require_players(Model(torch.nn.Sequential(LogMel())))
    with pytest.raises(InputError, match="speed_on is 'device', which frontend Linear cannot do"):
        require_players(Model(LogMel()), Model(torch.nn.Linear(1, 1)))
