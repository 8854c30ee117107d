"""The ablation ladder: each step differs from the last by one constructor argument, and costs what the paper says."""

import inspect

import pytest
import torch

from seqformer.backbones.encoder import Encoder
from seqformer.backbones.ladder import LADDER
from seqformer.model import create_backbone
from seqformer.profile import count_flops, count_parameters
from seqformer.registry import lookup

torch.set_num_threads(1)

# reference/backbones.md, section 1.2: parameters in M and GFLOPs under count B, for 30 s.
PUBLISHED = [(27.4, 71.70), (27.5, 57.03), (27.5, 57.03), (28.7, 58.35), (28.7, 58.35), (28.2, 42.70)]


def settings(name: str, monkeypatch) -> dict:
    """Every constructor argument of a preset, defaults included."""
    seen = []

    def record(self, *args, **keywords):
        bound = inspect.signature(init).bind(self, *args, **keywords)
        bound.apply_defaults()
        seen.append({key: value for key, value in bound.arguments.items() if key != "self"})
        init(self, *args, **keywords)

    init = Encoder.__init__
    with monkeypatch.context() as patch, torch.device("meta"):
        patch.setattr(Encoder, "__init__", record)
        lookup("backbone", name)(in_dim=80)
    return seen[0]


def test_each_step_changes_one_argument(monkeypatch):
    steps = [settings(step.name, monkeypatch) for step in LADDER]
    for step, before, after in zip(LADDER[1:], steps, steps[1:], strict=False):
        changed = {key: value for key, value in after.items() if before[key] != value}
        assert [f"{key}={value}" for key, value in changed.items()] == [step.changed]


@pytest.mark.parametrize(("step", "published"), list(zip(LADDER, PUBLISHED, strict=True)), ids=lambda v: str(v)[:30])
def test_a_step_costs_what_is_published(step, published):
    with torch.device("meta"):
        model = create_backbone(step.name, in_dim=80)
    millions, giga = published
    # The paper's millions hold the CTC head and the statistics of BatchNorm.
    statistics = sum(value.numel() for key, value in model.named_buffers() if "running" in key)
    total = sum(count_parameters(model).values()) + 128 * model.dim + 128 + statistics
    flops = count_flops(model, 3000)
    print(f"{step.name}: {total / 1e6:.2f} M, A {flops.a / 1e9:.2f}, B {flops.b / 1e9:.2f} GFLOPs")
    assert abs(total / 1e6 - millions) <= 0.05
    assert abs(flops.b / 1e9 / giga - 1) <= 0.01
