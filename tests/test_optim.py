"""The step the trainer takes: schedules, accumulation, averages, decay and skipping are what their formulas say."""

import copy
import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import TINY, change

import seqformer
from seqformer import InputError
from seqformer.checkpoint import load_weights
from seqformer.config import Optim, build_config
from seqformer.data.dataset import SequenceDataset
from seqformer.data.manifest import read_manifest
from seqformer.data.targets import fit_targets
from seqformer.predict import build_model
from seqformer.train import crossval
from seqformer.train.crossval import make_fabric, train_run
from seqformer.train.log import RunLog
from seqformer.train.loop import FoldJob, FoldTrainer, Work
from seqformer.train.optim import averaged, learning_rate, make_optimizer


def rates(steps: int, **optim) -> np.ndarray:
    """Learning rates after 1 ... ``steps`` of so many steps."""
    return np.array([learning_rate(step / steps, Optim(**optim)) for step in range(1, steps + 1)])


@pytest.mark.parametrize("warmup, hold", [(20, 160), (1, 0), (50, 450), (100, 100)])
def test_hold_decay_is_the_squeezeformer_recipe(warmup, hold):
    """peak t / w; peak; peak w / (t - h), not below min_lr: Squeezeformer as NeMo's config has it, with exponent 1."""
    steps, peak, lowest = 500, 2e-3, 1e-5
    wanted = [
        peak * t / warmup if t <= warmup
        else peak if t <= warmup + hold
        else max(lowest, peak * warmup / (t - hold))
        for t in range(1, steps + 1)
    ]  # fmt: skip
    found = rates(steps, lr=peak, schedule="hold_decay", warmup=warmup / steps, hold=hold / steps, min_lr=lowest)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "hold_decay"])
def test_schedules_are_continuous_and_within_bounds(schedule):
    found = rates(20_000, lr=1e-3, schedule=schedule, warmup=0.1, hold=0.2, min_lr=1e-6)
    assert np.abs(np.diff(found)).max() < 3 * 1e-3 / 2_000 and found.max() == pytest.approx(1e-3) and found.min() > 0
    if schedule in ("cosine", "one_cycle"):
        assert found[-1] == pytest.approx(1e-6)


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_one_cycle_is_that_of_torch(warmup):
    steps, peak, lowest = 100, 3e-3, 3e-6
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # torch counts from 0 and peaks at pct_start * steps - 1; we say which share is done after a step.
    ends = {"div_factor": 25, "final_div_factor": peak / 25 / lowest}
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        peak,
        total_steps=steps + 1,
        pct_start=(warmup * steps + 1) / (steps + 1),
        cycle_momentum=False,
        **ends,
    )
    wanted = []
    for _ in range(steps):
        optimizer.step()
        cycle.step()
        wanted.append(optimizer.param_groups[0]["lr"])
    found = rates(steps, lr=peak, schedule="one_cycle", warmup=warmup, min_lr=lowest)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_cosine_with_and_without_hold():
    for hold in (0.0, 0.3):
        found = rates(200, lr=1e-3, schedule="cosine", warmup=0.1, hold=hold, min_lr=1e-5)
        share = (np.arange(1, 201) / 200 - 0.1 - hold) / (0.9 - hold)
        fall = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + np.cos(math.pi * share.clip(0, 1)))
        np.testing.assert_allclose(found, np.minimum(fall, 1e-3 * np.arange(1, 201) / 20), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_no_warmup_and_nothing_but_warmup(schedule):
    assert rates(10, lr=1.0, schedule=schedule, warmup=0.0)[0] > 0.9
    assert rates(10, lr=1.0, schedule=schedule, warmup=1.0)[-1] == pytest.approx(1.0)


def test_no_decay_on_norms_biases_and_scales():
    for name in ("adamw", "lion", "sgd"):
        plain = change(TINY, optim__name=name, optim__weight_decay=0.3)
        model = seqformer.create_model(plain["frontend"], plain["backbone"], {"name": "ctc", "vocab": 5})
        decayed, free = make_optimizer(model, build_config(plain).optim).param_groups
        assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
        assert {p.dim() for p in free["params"]} == {1} and 1 not in {p.dim() for p in decayed["params"]}
        assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    (weight,) = decayed["params"][:1]
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kept = [parameter.detach().clone() for parameter in free["params"]]
    make_optimizer(model, Optim(name="adamw", lr=0.1, weight_decay=0.3)).step()
    torch.testing.assert_close(weight, before * (1 - 0.1 * 0.3))
    assert all(map(torch.equal, kept, free["params"]))


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "lion", "nadamw", "lamb", "sgd", "adan", "muon", "adafactorbv", "lookahead_radam"]
)
def test_optimizers_by_name_learn(name):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), torch.randn(64, 4)
    optimizer = make_optimizer(model, Optim(name=name, lr=1e-2))
    if "betas" in optimizer.defaults and len(optimizer.defaults["betas"]) == 2:
        assert tuple(optimizer.defaults["betas"]) == Optim().betas  # a key of the config is never ignored
    losses = []
    for _ in range(60):
        loss = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("adamx", "optim.name: found 'adamx'; did you mean 'adam"),
        ("lookahead_adamx", "optim.name: found 'adamx'; did you mean 'adam"),
        ("kron", "draws random numbers of its own"),
        ("fusedadam", "optim.name: fusedadam cannot be used here"),
    ],
)
def test_optimizers_that_cannot_be(name, wanted):
    with pytest.raises(InputError, match=wanted):
        make_optimizer(torch.nn.Linear(2, 2), Optim(name=name))


def test_average_is_its_closed_form():
    """a_1 = w_1, then a += (1 - d_n)(w - a) with d_n = min(decay, (1 + n) / (10 + n)); counters are copied."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()
    average, wanted = averaged(model, 0.6), None
    for step in range(40):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(step))
        average.update_parameters(model)
        now = {name: value.clone() for name, value in model.state_dict().items()}
        pace = 1 - min(0.6, (1 + step) / (10 + step))
        wanted = now if wanted is None else {k: v + pace * (now[k] - v) for k, v in wanted.items() if "num" not in k}
        found = average.module.state_dict()
        assert found["1.num_batches_tracked"] == step and average.n_averaged == step + 1
        torch.testing.assert_close({key: found[key] for key in wanted}, wanted, rtol=1e-12, atol=1e-12)


def trainer(plain: dict, folder, rows: int = 12) -> FoldTrainer:
    """A trainer of a model without dropout over the first rows of the corpus."""
    config = build_config(plain)
    table = read_manifest(config.data.manifest).head(rows)
    targets = fit_targets(table, ["text"], {"kind": "chars", "vocab": 9, "alphabet": "abc"}, table)
    torch.manual_seed(0)
    job = FoldJob(
        config, "0", 0, folder, build_model(config, targets), targets,
        SequenceDataset(table, targets, 8000), None, RunLog(None, quiet=True),
    )  # fmt: skip
    found = FoldTrainer(job, make_fabric(config.train))
    for norm in [part for part in job.model.modules() if hasattr(part, "momentum")]:
        norm.eval().train = lambda mode=True, norm=norm: norm  # keeps to its running statistics
    return found


def still(tiny, **changes) -> dict:
    """The tiny config with nothing random in it."""
    changes = {
        "augment": [],
        "frontend__dither": 0.0,
        "frontend__spec_augment": None,
        "backbone__dropout": 0.0,
    } | changes
    return tiny(**changes)


def test_accumulation_is_one_large_batch(tiny, tmp_path):
    """Two batches of 4 and 8 items move the weights as one batch of the 12, items weighted or not."""
    # Not Adam, which makes a step of every gradient that is zero but for rounding.
    whole, parts = (trainer(still(tiny, train__clip=0.5, optim__name="sgd", optim__lr=0.1), tmp_path) for _ in range(2))
    for weights in (torch.ones(12), torch.rand(12) + 0.1):
        for found, sizes in ((whole, (12,)), (parts, (4, 8))):
            found.model.train()
            bounds = np.cumsum((0, *sizes))
            keys = [[(0, row) for row in range(a, b)] for a, b in itertools.pairwise(bounds)]
            group = [seqformer.collate([found.job.train[key] for key in batch]) for batch in keys]
            for batch, (a, b) in zip(group, itertools.pairwise(bounds), strict=True):
                batch.weight.copy_(weights[a:b])
            found.ceiling = 1.0
            line = found.step(Work(group, 0.0, 0.5))
            found.wanted = {key: line[key] for key in ("loss", "grad_norm")}
        assert whole.wanted == pytest.approx(parts.wanted, rel=1e-5)
        torch.testing.assert_close(whole.job.model.state_dict(), parts.job.model.state_dict(), rtol=1e-5, atol=2e-6)


def test_learning_rate_reaches_the_optimizer_before_and_after_resuming(tiny, tmp_path, monkeypatch):
    plain, seen, update = tiny(train__epochs=2, augment=[], optim__schedule="one_cycle"), [], FoldTrainer.update

    def updated(self, group, norm):
        seen.append({part["lr"] for part in self.optimizer.optimizer.param_groups})
        if len(seen) == 5:
            raise KeyboardInterrupt
        update(self, group, norm)

    monkeypatch.setattr(FoldTrainer, "update", updated)
    with pytest.raises(KeyboardInterrupt):
        train_run(plain, tmp_path, quiet=True)
    train_run(plain, tmp_path, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "tiny" / "log.jsonl").read_text().splitlines()]
    wanted = [record["lr"] for record in records if "lr" in record]
    assert len(wanted) == len(set(wanted)) == 6 and wanted[-1] == pytest.approx(build_config(plain).optim.min_lr)
    assert seen[:5] == [{lr} for lr in wanted[:5]]
    assert seen[5:] == [{lr} for lr in wanted[4:]]  # saved after step 4; the step cut short is done again


def test_scaler_of_fp16_is_saved(tiny, tmp_path, monkeypatch):
    """fp16 with its loss scaler, stopped in the middle and resumed, ends as the run that was not stopped."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    def fabric(_):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
        return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))

    plain, save = tiny(train__epochs=2, train__save_every=1), FoldTrainer.save
    monkeypatch.setattr(crossval, "make_fabric", fabric)
    train_run(plain, tmp_path / "whole", quiet=True)

    def save_and_stop(self, name):
        save(self, name)
        if self.at.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldTrainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(plain, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(FoldTrainer, "save", save)
    train_run(plain, tmp_path / "cut", quiet=True)
    states = [json.loads((tmp_path / name / "tiny/fold0/last/state.json").read_text()) for name in ("whole", "cut")]
    assert states[0] == states[1] and 0 < states[0]["scaler"]["scale"] < 2.0**40
    assert states[0]["averages"] < states[0]["step"]  # the first steps overflowed and were skipped
    weights = [load_weights(tmp_path / name / "tiny/fold0/last") for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def poison(batch, rows: list[int]):
    """A batch in which the samples of some items are not finite."""
    batch = copy.deepcopy(batch)
    batch.inputs["x"][rows, 5] = float("nan")
    return batch


def test_a_step_without_finite_gradient_leaves_nothing_behind(tiny, tmp_path, capsys):
    """Weights, averages, optimiser and running statistics are as before; the rows are named, the bad ones first."""
    found = trainer(tiny(augment=[], data__batch_frames=10**6), tmp_path)
    found.job.log.console.quiet = False
    found.job.log.console.width = 500
    found.model.train()
    found.ceiling = 1.0
    good = seqformer.collate([found.job.train[0, row] for row in range(12)])
    for norm in [part for part in found.job.model.modules() if hasattr(part, "momentum")]:
        del norm.train
        norm.train()
    found.step(Work([good], 0.0, 0.1))

    def state() -> dict:
        optim = {
            f"optim{k}{n}": v for k, values in found.optimizer.state_dict()["state"].items() for n, v in values.items()
        }
        average = {f"average{key}": value for key, value in found.average.state_dict().items()}
        return copy.deepcopy(found.job.model.state_dict() | average | optim)

    before = state()
    line = found.step(Work([good, poison(good, [7, 9])], 0.0, 0.2))
    assert math.isnan(line["grad_norm"]) and found.at.skipped == 1 and found.at.step == 2
    assert all(torch.equal(value, before[key]) for key, value in state().items())
    assert "step 2: gradient norm nan; step skipped; batch: row07, row09, row00, " in capsys.readouterr().out
    found.step(Work([good], 0.0, 0.3))
    assert found.at.skipped == 0 and not torch.equal(
        state()["heads.ctc.linear.weight"], before["heads.ctc.linear.weight"]
    )


def test_fabric_prints_no_warning(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_fabric(build_config(tiny()).train).world_size == 1
