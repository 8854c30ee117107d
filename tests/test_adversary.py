"""Adversarial weights and averages of epochs: what their papers write down, and nothing left behind."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import DENSE, poisoned
from test_optim import still, trainer

import seqformer
from seqformer import InputError
from seqformer.checkpoint import load_weights
from seqformer.config import Awp, build_config
from seqformer.train.adversary import perturbed
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer, Work


def squared_error(model, x, y) -> None:
    """Leave the gradient of mean (x W' + b - y)^2 in a model."""
    model.zero_grad()
    (model(x) - y).square().mean().backward()


@pytest.mark.parametrize("relative", [True, False])
def test_the_gradient_is_that_of_the_moved_matrix(relative):
    """On a linear model by hand: W + size |W| g / |g|, the bias where it was; the gradient there; then back."""
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(5, 3).double(), torch.randn(40, 5).double(), torch.randn(40, 3).double()
    w, b = (value.detach().clone() for value in (model.weight, model.bias))
    g = 2 * (x @ w.T + b - y).T @ x / y.numel()
    moved = w + 0.2 * (w.norm() if relative else 1.0) * g / g.norm()
    gap = x @ moved.T + b - y
    squared_error(model, x, y)
    with perturbed(model, Awp(size=0.2, relative=relative)):
        torch.testing.assert_close(model.weight.detach(), moved, rtol=1e-12, atol=1e-12)
        squared_error(model, x, y)
    torch.testing.assert_close(model.weight.grad, 2 * gap.T @ x / y.numel(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.bias.grad, 2 * gap.sum(dim=0) / y.numel(), rtol=1e-10, atol=1e-12)
    assert torch.equal(model.weight, w) and torch.equal(model.bias, b)


@pytest.mark.parametrize("fault", [0.0, math.nan, math.inf])
def test_weights_and_statistics_come_back_bit_for_bit(fault):
    """After a zero gradient, one that is not finite, and an error inside; a zero one moves nothing."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2, bias=False))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, fault)
    with pytest.raises(KeyError), perturbed(model, Awp(size=0.1)):
        assert fault or all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        found = model(torch.randn(9, 4))
        assert not fault or found.isnan().all()
        raise KeyError
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_step_uses_the_gradient_of_the_moved_weights(tiny, tmp_path):
    """With two batches accumulated: as a step without it from weights moved along the gradient of both together."""
    plain = still(tiny, optim__name="sgd", optim__lr=0.1, optim__weight_decay=0.0, train__clip=0.0, train__ema=0.0)
    awp = copy.deepcopy(plain)
    awp["train"]["awp"] = {"size": 0.05, "from_epoch": 1}
    for epoch in (0, 1):
        one, two = trainer(awp, tmp_path), trainer(plain, tmp_path)
        groups = []
        for found, sizes in ((one, (4, 8)), (two, (12,))):
            found.model.train()
            found.ceiling, found.at.epoch = 1.0, epoch
            bounds = itertools.pairwise(np.cumsum((0, *sizes)))
            groups.append([seqformer.collate([found.job.train[0, row] for row in range(a, b)]) for a, b in bounds])
        start = copy.deepcopy(two.job.model.state_dict())
        (batch,) = groups[1]
        loss = two.job.model.loss(batch)
        loss.backward()
        moves = {
            name: 0.05 * value.norm() * value.grad / value.grad.norm()
            for name, value in two.job.model.named_parameters()
            if value.dim() > 1 and epoch == 1
        }
        with torch.no_grad():
            for name, value in two.job.model.named_parameters():
                value.add_(moves.get(name, 0))
        two.optimizer.zero_grad()
        line = one.step(Work(groups[0], 0.0, 0.5))
        two.step(Work(groups[1], 0.0, 0.5))
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)  # that of the clean weights
        found, wanted = one.job.model.state_dict(), two.job.model.state_dict()
        for name, value in wanted.items():
            step = value - start[name] - moves.get(name, 0)
            torch.testing.assert_close(found[name] - start[name], step, rtol=2e-3, atol=2e-6)


def test_swa_is_the_mean_of_the_last_epochs(tiny, tmp_path, monkeypatch):
    """Weights and statistics validated and saved: each epoch's own, and after the share the mean of those since."""
    plain = tiny(data__manifest=str(poisoned(tmp_path, [])), augment=[], **DENSE)
    plain["train"] |= {"epochs": 5, "ema": 0.0, "swa": 0.4}
    ends, validate = [], FoldTrainer.validate

    def noted(self):
        ends.append({key: value.clone() for key, value in self.job.model.state_dict().items()})
        used, last = self.eval_model.state_dict(), ends[2:] or ends[-1:]  # 0.4 of 5 epochs are over after two
        for key, value in used.items():
            mean = torch.stack([end[key].double() for end in last]).mean(dim=0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
        validate(self)

    monkeypatch.setattr(FoldTrainer, "validate", noted)
    train_run(plain, tmp_path, quiet=True)
    assert len(ends) == 5
    saved = load_weights(tmp_path / "tiny/fold0/last")
    for key, value in saved.items():
        mean = torch.stack([end[key].double() for end in ends[2:]]).mean(dim=0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved["heads.ctc.linear.weight"], ends[-1]["heads.ctc.linear.weight"])


@pytest.mark.parametrize(
    "section, wanted",
    [
        ({"swa": 0.5}, "train.swa and train.ema both average the weights; give one of them"),
        ({"swa": 1.0, "ema": 0.0}, "train.swa is 1.0; it must be from 0 to below 1"),
        ({"awp": {"size": 0.0}}, "train.awp.size is 0.0; it must be above 0"),
        ({"awp": {"from_epoch": 3}}, "train.awp.size is missing"),
    ],
)
def test_a_faulty_section_is_one_line(tiny, section, wanted):
    plain = tiny()
    plain["train"] |= section
    with pytest.raises(InputError) as caught:
        build_config(plain)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
