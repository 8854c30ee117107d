"""MFU, padding share and loader wait of the log, against FLOPs by hand, a counted real step, and sums over an epoch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from frontend_inputs import FRONTS
from test_padding import make_batch, make_items, make_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqformer.batch import Batch
from seqformer.model import create_model
from seqformer.nn.mask import mask_of
from seqformer.train.log import Meter
from seqformer.train.loop import FoldTrainer, Work
from seqformer.train.throughput import StepFlops, _convolution_backward, model_flops

torch.set_num_threads(1)

F, D, H, KERNEL, V = 6, 12, 2, 5, 3
SMALL = {"name": "squeezeformer", "dim": D, "depth": 2, "heads": H, "kernel": KERNEL, "reduce_at": None}


def small_model(positions: str = "xl"):
    torch.manual_seed(0)
    backbone = SMALL | {"stem": "linear", "positions": positions}
    return create_model({"name": "dense", "channels": F}, backbone, {"name": "classify", "vocab": V})


def batch_of(lengths: list[int]) -> Batch:
    mask = mask_of(torch.tensor(lengths), max(lengths))
    weight = torch.ones(len(lengths))
    return Batch([str(n) for n in lengths], {"x": torch.randn(*mask.shape, F)}, mask, {}, weight)


def by_hand(T: int) -> int:
    """A step over one item. Forward once, and as much again for the gradient of a layer's input and of its weight."""
    projections = 4 * 2 * T * D * D
    feed_forward = 2 * (2 * T * D * 4 * D)
    convolution = 2 * (2 * T * D * 2 * D) + 2 * T * 2 * D * KERNEL
    scores = 2 * T * D * T + 2 * T * D * (2 * T - 1)  # of keys and of distances
    block = 3 * (projections + scores + 2 * T * T * D + 2 * feed_forward + convolution)
    position = 2 * (2 * T - 1) * D * D  # of a table, which wants no gradient, as the input of the stem
    return 2 * (block + 2 * position) + 2 * (2 * T * F * D) + 3 * (2 * D * V)


@pytest.mark.parametrize("frames", [8, 41])
def test_flops_by_hand(frames):
    found = model_flops(small_model(), batch_of([frames, 3]))
    assert found.of(torch.tensor([frames])) == pytest.approx(by_hand(frames), rel=1e-12)


def counted(model, batch: Batch) -> int:
    """FLOPs of a real step over a batch, as torch sees the operators run."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, sdpa_kernel(SDPBackend.MATH):
        sum(logits.float().sum() for logits in model(batch.inputs, batch.mask).values()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("positions", ["xl", "rotary", "none"])
def test_flops_of_a_real_batch_without_padding(positions):
    model, batch = small_model(positions), batch_of([30, 30, 30])
    found = model_flops(model, batch)
    assert found.of(torch.tensor([30, 30, 30])) == pytest.approx(counted(model, batch), rel=1e-12)
    # Between the lengths counted: what does not grow with the length is all that is wrong.
    assert found.of(torch.tensor([20])) == pytest.approx(counted(model, batch_of([20])), rel=0.01)


def test_a_convolution_backward_is_two_convolutions():
    x, w = torch.randn(2, 6, 1, 20, requires_grad=True), torch.randn(6, 1, 1, 5, requires_grad=True)
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        torch.nn.functional.conv2d(x, w, groups=6).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 6 * 16 * 5)


# One of each, but for the image network, which takes seconds to make, and a bias of more heads than there are.
COUNTED = [front for front in FRONTS if front["name"] not in ("spectrogram_cnn", "pair")]
COUNTED = [*{front["name"]: front for front in COUNTED}.values(), next(f for f in FRONTS if f["name"] == "pair")]


@pytest.mark.parametrize("front", COUNTED, ids=lambda front: front["name"])
def test_every_frontend_and_head_is_counted(front):
    """Nothing in them needs values to be counted, and counting leaves a model as it was."""
    model = make_model(front, SMALL | {"depth": 1, "stem": "linear"})
    model.train()
    batch = replace(make_batch(model, make_items(model, (12, 9))), axes={"pair": "TT", "static": ""})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = model_flops(model, batch)
    assert (
        found.a > 0 <= found.b
        and found.shared >= 0
        and model.training
        and all(p.grad is None for p in model.parameters())
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_step_is_measured_by_its_real_frames(monkeypatch):
    """Padding is waste, waiting for batches is part of a step, and two batches make one step."""
    batches = [batch_of([30, 10]), batch_of([20, 20])]
    trainer = SimpleNamespace(flops=StepFlops(100.0, 2.0, 7.0), ceiling=1e4)
    monkeypatch.setattr("seqformer.train.loop.time.perf_counter", lambda: 13.0)
    found = FoldTrainer.measured(trainer, Work(batches, 1.0, 0.5), start=10.0)
    flops = 100 * 80 + 2 * (900 + 100 + 400 + 400) + 7 * (30 + 20)
    assert found == pytest.approx(
        {"frames_per_s": 20.0, "padding": 0.2, "wait": 0.25, "mfu": flops / 4e4, "seconds": 4.0}
    )


def test_an_epochs_shares_are_of_its_seconds_and_frames():
    """A step of a second and one of nine: rates are of ten seconds, not means of two rates."""
    meter = Meter()
    same = {"loss": 1.0, "grad_norm": 1.0}
    meter.add(**same, frames_per_s=900.0, padding=0.1, wait=0.5, mfu=0.4, seconds=1.0)
    meter.add(**same, frames_per_s=100.0, padding=0.5, wait=0.0, mfu=0.2, seconds=9.0)
    assert meter.mean("frames_per_s") == pytest.approx(180) and meter.mean("wait") == pytest.approx(0.05)
    assert meter.mean("mfu") == pytest.approx(0.22) and meter.mean("loss") == 1
    assert meter.mean("padding") == pytest.approx(1 - 1800 / (1000 + 1800))
