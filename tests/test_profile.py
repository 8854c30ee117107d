"""A profile's figures against published counts, closed forms, and the brute force of a backbone that really runs."""

import json

import pytest
import torch
from test_lengths import on_meta
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqformer.errors import InputError
from seqformer.model import create_backbone, list_backbones
from seqformer.nn.attention import Attention
from seqformer.nn.norm import MaskedBatchNorm
from seqformer.nn.paths import plain_paths
from seqformer.profile import (
    OPERATORS,
    PARTS,
    count_activation_bytes,
    count_flops,
    count_parameters,
    measure_ms,
    profile_backbone,
    receptive_frames,
)

torch.set_num_threads(1)

FRAMES = 3000  # 30 s
# reference/backbones.md, section 1.4: GFLOPs for 30 s, torch's counter on the published code and the paper's own.
PUBLISHED = {
    "squeezeformer_xs": (17.83, 15.8),
    "squeezeformer_s": (33.05, 29.7),
    "squeezeformer_sm": (46.90, 42.7),
    "squeezeformer_m": (87.05, 79.9),
    "squeezeformer_ml": (181.57, 169.2),
    "squeezeformer_l": (330.49, 309.6),
    "conformer_ctc_s": (29.29, 26.2),
    "conformer_ctc_m": (77.87, 71.7),
    "conformer_ctc_l": (298.02, 280.6),
}
SMALL = dict(in_dim=12, dim=16, depth=3, heads=2, ff_factor=2, kernel=5)
UNET = SMALL | dict(reduce_at=1, recover_at=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_of_a_published_size(name):
    backbone, (a, b) = on_meta(name), PUBLISHED[name]
    found = count_flops(backbone, FRAMES)
    # Ours projects before it repeats at the recovery: half the work of that layer, T / 8 frames fewer.
    recovery = found.parts["recovery"]
    assert (found.a + recovery) / 1e9 == pytest.approx(a, abs=0.006)
    assert found.a / 1e9 == pytest.approx(a, rel=0.0012) and found.b / 1e9 == pytest.approx(b, rel=0.005)
    assert recovery == (2 * 375 * backbone.dim**2 if name.startswith("squeezeformer") else 0)
    assert sum(found.parts.values()) == sum(found.operators.values()) == found.a
    assert tuple(found.parts) == PARTS and tuple(found.operators) == OPERATORS
    assert not found.parts["other"] and not found.operators["other"]
    if name == "squeezeformer_xs":
        assert found.operators["attention"] / 1e9 == pytest.approx(6.48, abs=0.005)


@pytest.mark.parametrize(
    "name, a", [("fastconformer_s", 15.64), ("fastconformer_m", 27.60), ("fastconformer_l", 97.20)]
)
def test_flops_of_fastconformer(name, a):
    assert count_flops(on_meta(name), FRAMES).a / 1e9 == pytest.approx(a, abs=0.006)


@pytest.mark.parametrize("positions", ["xl", "rotary", "none"])
@pytest.mark.parametrize("name, keywords", [("squeezeformer", UNET), ("conformer", SMALL)])
def test_flops_do_not_depend_on_the_device(name, keywords, positions):
    backbone = create_backbone(name, **keywords, positions=positions).train()
    statistics = [m.running_mean.clone() for m in backbone.modules() if isinstance(m, MaskedBatchNorm)]
    found = count_flops(backbone, 50, 12)
    assert found == count_flops(on_meta(name, **keywords, positions=positions), 50, 12)
    assert backbone.training and all(module.training for module in backbone.modules())
    assert all(p.device.type == "cpu" and p.grad is None for p in backbone.parameters())
    backbone.eval()
    with plain_paths(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        backbone(torch.zeros(1, 50, 12), torch.ones(1, 50, dtype=torch.bool))
    assert counter.get_total_flops() == found.a
    kept = [m.running_mean for m in backbone.modules() if isinstance(m, MaskedBatchNorm)]
    assert all(torch.equal(a, b) for a, b in zip(statistics, kept, strict=True))


def test_convention_b_by_hand():
    """One attention layer over T frames: T - 1 rows fewer in the position projection and in each query's scores."""
    backbone, T, D = on_meta("conformer", **SMALL | dict(depth=1, stem="linear")), 37, 16
    found = count_flops(backbone, T, 12)
    linears = 4 * 2 * T * D * D + 2 * (2 * T - 1) * D * D
    products = 2 * T * D * (2 * T - 1) + 2 * 2 * T * T * D
    assert found.parts["attention"] == linears + products and found.operators["attention"] == products
    assert found.a - found.b == 2 * (T - 1) * D * D + 2 * T * (T - 1) * D


@pytest.mark.parametrize("name", list_backbones("*_*"))
def test_parameters_by_part_sum_to_the_total(name):
    backbone = on_meta(name)
    found = count_parameters(backbone)
    assert tuple(found) == PARTS and not found["other"]
    assert sum(found.values()) == sum(parameter.numel() for parameter in backbone.parameters())
    stem = getattr(backbone, "stem", None)  # ContextNet has none
    assert found["stem"] == (0 if stem is None else sum(parameter.numel() for parameter in stem.parameters()))


def test_parts_of_a_module_nothing_is_known_of():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = (
                nn.Linear(3, 4),
                nn.ModuleDict({"attention": Attention(4, 2), "gate": nn.Linear(4, 4)}),
            )
            self.shared, self.scale = self.inner["gate"], nn.Parameter(torch.zeros(5))
            self.norm = nn.LayerNorm(4)  # fmt: skip

    found = count_parameters(Odd())
    attention = 5 * 16 + 4 * 4 + 2 * 4
    assert found == dict.fromkeys(PARTS, 0) | dict(
        stem=16, attention=attention, norms_and_scales=8, other=20 + 5
    )  # the shared gate counts once


def field_by_gradient(backbone: nn.Module, frames: int, in_dim: int) -> int:
    """Input frames that a gradient of the middle output frame reaches, attention handing its input on."""
    for module in backbone.modules():
        if isinstance(module, Attention):
            module.forward = lambda x, *_, **__: x
    x = torch.randn(1, frames, in_dim, dtype=torch.float64, requires_grad=True)
    y, _ = backbone.double().eval()(x, torch.ones(1, frames, dtype=torch.bool))
    y[0, y.shape[1] // 2].square().sum().backward()
    touched = x.grad[0].abs().sum(dim=1).nonzero()
    return int(touched.max() - touched.min()) + 1


@pytest.mark.parametrize("stem", ["depthwise_conv2d", "conv2d", "linear"])
@pytest.mark.parametrize("name, keywords", [("squeezeformer", UNET), ("squeezeformer", SMALL), ("conformer", SMALL)])
def test_receptive_field_by_gradient(name, keywords, stem):
    torch.manual_seed(0)
    backbone = create_backbone(name, **keywords | dict(stem=stem, kernel=4))
    found = receptive_frames(backbone, 12)
    assert not any("forward" in vars(module) for module in backbone.modules())
    assert found == field_by_gradient(backbone, 64 * backbone.stride, 12)


@pytest.mark.parametrize("context, reach", [((3, 5), 8), ((0, 2), 2), ((-1, 2), 0), (None, 0)])
def test_receptive_field_of_limited_attention(context, reach):
    backbone = create_backbone("conformer", **SMALL | dict(stem="linear", context=context))
    assert receptive_frames(backbone, 12) == 1 + 3 * (4 + reach)
    found = profile_backbone("conformer", 20, timed=False, arguments=SMALL | dict(stem="linear", context=context))
    assert found.attends == (not reach) and found.receptive_frames == 1 + 3 * (4 + reach)


@pytest.mark.parametrize("name, full, halved", [("squeezeformer_xs", 8, 8), ("conformer_ctc_s", 16, 0)])
def test_receptive_field_of_a_published_size(name, full, halved):
    """Kernel 31 at 4 and at 8 input frames a step, kernel 5 at 4 in the reduction, the stem's two of 3 at 1 and 2."""
    expected = 1 + full * 30 * 4 + halved * 30 * 8 + (4 * 4 if halved else 0) + 2 * 1 + 2 * 2
    assert receptive_frames(on_meta(name)) == expected


class Pooling(nn.Module):
    """A stem of 1-D convolution, and a global mean added to it."""

    stride, dim = 2, 4

    def __init__(self, whole: bool):
        super().__init__()
        self.stem, self.whole = nn.Conv1d(12, 4, 3, stride=2, padding=1), whole

    def forward(self, x, mask):
        x = self.stem(x.transpose(1, 2)).transpose(1, 2)
        return x + x.mean(dim=1, keepdim=True) * self.whole if self.whole else x, mask[:, ::2]


def test_receptive_field_of_a_stem_with_its_own_width_and_of_a_global_mean():
    assert receptive_frames(Pooling(False), 12) == 3
    assert receptive_frames(Pooling(True), 12) is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name, keywords", [("squeezeformer", UNET), ("conformer", SMALL)])
def test_activation_bytes_of_a_real_pass(name, keywords, batch):
    """Every storage that a real training pass saves, parameters left out."""
    torch.manual_seed(0)
    backbone = create_backbone(name, **keywords | dict(stem="linear")).train()
    own, saved = {p.untyped_storage().data_ptr() for p in backbone.parameters()}, {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, sdpa_kernel(SDPBackend.MATH), plain_paths():
        backbone(torch.randn(batch, 40, 12), torch.ones(batch, 40, dtype=torch.bool))
    real = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)
    assert count_activation_bytes(backbone, 40, 12, batch) == real


def test_activations_grow_with_batch_and_length():
    backbone = on_meta("squeezeformer_xs")
    one, two, long = (count_activation_bytes(backbone, T, batch=B) for T, B in ((800, 1), (800, 2), (1600, 1)))
    assert 1.9 * one < two < 2 * one and long > 2 * one


def test_milliseconds_leave_the_backbone_as_it_was():
    backbone = create_backbone("conformer", **SMALL)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    forward_ms, step_ms = measure_ms(backbone, 20, 12, repeats=2)
    assert 0 < forward_ms < step_ms < 60_000
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_bad_lengths_and_names():
    with pytest.raises(InputError, match="frames: found 0"):
        profile_backbone("squeezeformer_xs", 0)
    with pytest.raises(InputError, match="did you mean 'squeezeformer_xs'"):
        profile_backbone("squeezeformer_xss", 10)


def test_the_command(program, tmp_path):
    small = ["squeezeformer_xs", "depth=2", "reduce_at=0", "recover_at=1", "kernel=3", "dim=16"]
    code, out, _ = program("profile", *small, "--seconds", "0.5", "--json", tmp_path / "found.json")
    facts = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and "training step" in out and f"{facts['parameters']:,}" in out
    assert facts["frames"] == 50 and facts["arguments"]["depth"] == 2 and facts["step_ms"] > facts["forward_ms"] > 0
    assert facts["threads"] == 1 and facts["device"]
    code, out, _ = program("profile", *small, "--frames", "50", "--no-time", "--json", "-")
    assert code == 0 and json.loads(out) == facts | dict.fromkeys(("device", "threads", "forward_ms", "step_ms"))
    code, out, _ = program("profile", *small, "in_dim=7", "--frames", "50", "--no-time", "--json", "-")
    assert code == 0 and json.loads(out)["in_dim"] == 7


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        (["squeezeformer_xxs"], "unknown backbone 'squeezeformer_xxs'; did you mean 'squeezeformer_"),
        (["squeezeformer_xs", "depht=2"], "has no argument 'depht'; did you mean 'depth'?"),
        (["squeezeformer_xs", "depth"], "override 'depth': expected key=value, such as dim=128"),
        (["squeezeformer_xs", "depth=two"], "found 'two' (str); expected int"),
        (["squeezeformer_xs", "stem=${a}"], "a config holds plain values"),
        (["squeezeformer_xs", "--frames", "0"], "frames: found 0; expected 1 or more"),
        (["squeezeformer"], "squeezeformer"),
    ],
)
def test_the_command_refuses(program, arguments, wanted):
    code, out, err = program("profile", *arguments, "--no-time")
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and wanted in err, err
