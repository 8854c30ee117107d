"""Lengths and sizes are exact for every length and preset; models save, load, train, export and show their middle."""

import pytest
import torch
from torch import nn

from seqformer.frontends.audio import LogMel
from seqformer.heads.ctc import CTC
from seqformer.model import create_backbone, list_backbones
from seqformer.nn.mask import lengths_of, mask_of, stride_mask, strided, zero_padding
from seqformer.nn.subsample import make_stem

torch.set_num_threads(1)

LONGEST = 1024
STEMS = {"depthwise_conv2d": 4, "conv2d": 4, "linear": 1}
CLASSES = {"squeezeformer": dict(depth=2, reduce_at=0, recover_at=1, kernel=3), "conformer": dict(depth=1, kernel=4)}
SMALL = {name: dict(dim=16, heads=2, ff_factor=2, stem="depthwise_conv2d") | CLASSES[name] for name in CLASSES}
SMALL["squeezeformer"] |= dict(depth=3, reduce_at=1, recover_at=2)
SMALL["contextnet"] = dict(channels=(8, 16, 16, 16, 24), reduce_at=(1, 2, 4), convs=2)  # the rest: test_contextnet.py

# reference/backbones.md, section 1: parameters of the encoder, and with the CTC head of 128 units and the running
# statistics of BatchNorm.
PARAMETERS = {
    "squeezeformer_xs": (9_013_248, 9_041_024),
    "squeezeformer_s": (18_540_424, 18_579_752),
    "squeezeformer_sm": (28_151_808, 28_201_088),
    "squeezeformer_m": (55_580_256, 55_647_776),
    "squeezeformer_ml": (124_959_744, 125_062_272),
    "squeezeformer_l": (236_171_520, 236_309_888),
    "conformer_ctc_s": (8_711_136, 8_734_304),
    "conformer_ctc_m": (27_328_000, 27_369_088),
    "conformer_ctc_l": (121_436_160, 121_520_256),
}
# The same section's breakdown: stem, block norms, feed-forward, scales, conv modules, attention, reduce, recover and
# the LayerNorm before block 0.
BREAKDOWN = {
    "squeezeformer_xs": (438_624, 18_432, 5_331_456, 18_432, 1_490_688, 1_672_704, 21_744, 20_880, 288),
    "squeezeformer_s": (811_048, 28_224, 11_099_088, 28_224, 3_016_440, 3_478_608, 39_788, 38_612, 392),
    "squeezeformer_sm": (1_381_888, 32_768, 16_818_176, 32_768, 4_485_120, 5_267_456, 67_328, 65_792, 512),
    "squeezeformer_m": (2_211_624, 51_840, 33_657_120, 51_840, 8_858_160, 10_536_480, 107_244, 105_300, 648),
    "squeezeformer_ml": (5_516_288, 73_728, 75_589_632, 73_728, 19_528_704, 23_648_256, 265_728, 262_656, 1_024),
    "squeezeformer_l": (8_615_680, 112_640, 144_320_000, 112_640, 37_044_480, 45_140_480, 414_080, 410_240, 1_280),
}


def ceil_of(frames: int, stride: int) -> int:
    """ceil, written otherwise than in the library."""
    return -(-frames // stride)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(name: str, **keywords) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(name, in_dim=80, **keywords)


def small(name: str, **keywords) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, in_dim=16, **SMALL[name] | keywords)


def batch(frames: int = 57, features: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, frames, features), mask_of(torch.tensor([frames, 1, frames // 2]), frames)


def test_length_formula():
    frames = torch.arange(LONGEST + 1)
    for stride in (1, 2, 3, 4, 8):
        expected = [ceil_of(frame, stride) for frame in range(LONGEST + 1)]
        assert strided(frames, stride).tolist() == [strided(frame, stride) for frame in range(LONGEST + 1)] == expected
        mask = stride_mask(mask_of(frames, LONGEST), stride)
        assert mask.shape[1] == expected[-1] and lengths_of(mask).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
def test_stem_length_for_every_length(stem):
    module = make_stem(stem, 3, 2)
    assert module.stride == STEMS[stem]
    for frames in range(1, LONGEST + 1):
        x, mask = module(torch.ones(1, frames, 3), mask_of(torch.tensor([frames]), frames))
        assert x.shape == (1, ceil_of(frames, STEMS[stem]), 2)
        assert mask.shape == x.shape[:2] and mask.all()
    lengths = torch.arange(1, LONGEST + 1)
    x, mask = module(torch.ones(LONGEST, LONGEST, 3), mask_of(lengths, LONGEST))
    assert lengths_of(mask).tolist() == [ceil_of(length, STEMS[stem]) for length in lengths.tolist()]


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", CLASSES)
def test_backbone_length_for_every_length(name, stem):
    torch.manual_seed(0)
    keywords = dict(in_dim=3, dim=4, heads=1, ff_factor=1, positions="none", stem=stem)
    model = create_backbone(name, **keywords, **CLASSES[name]).eval()
    stride = model.stride
    assert stride == STEMS[stem] and model.dim == 4
    # Each T by itself (the two conv stems have one length formula, so one of them), then lengths inside a batch.
    for frames in range(1, LONGEST + 1, 1 if stem != "conv2d" else 7):
        y, mask = model(torch.ones(1, frames, 3), mask_of(torch.tensor([frames]), frames))
        assert y.shape == (1, ceil_of(frames, stride), 4) and mask.shape == y.shape[:2] and mask.all()
    size = 64
    for last in (size, 257, LONGEST):
        lengths = torch.arange(last - size + 1, last + 1)
        y, mask = model(torch.randn(size, last + 3, 3), mask_of(lengths, last + 3))
        expected = [ceil_of(length, stride) for length in lengths.tolist()]
        assert y.shape == (size, ceil_of(last + 3, stride), 4)
        assert lengths_of(mask).tolist() == lengths_of(y.any(dim=2)).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize(("rate", "window_ms", "hop_ms"), [(8000, 25.0, 10.0), (16000, 32.0, 8.0), (2000, 5.0, 5.5)])
def test_logmel_length_for_every_length(rate, window_ms, hop_ms):
    logmel = LogMel(mels=4, rate=rate, window_ms=window_ms, hop_ms=hop_ms).eval()
    hop = round(rate * hop_ms / 1000)
    for samples in [*range(1, 3 * hop + 3), 10 * hop - 1, 10 * hop, 10 * hop + 1, 4799, 4800, 4801]:
        features = logmel({"x": torch.randn(2, samples)}, mask_of(torch.tensor([samples, 1]), samples))
        assert features.x.shape == (2, ceil_of(samples, hop), 4) and features.x.isfinite().all()
        assert lengths_of(features.mask).tolist() == [ceil_of(samples, hop), 1]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name):
    model, other = small(name).eval(), small(name)
    for parameter in other.parameters():
        parameter.normal_()
    state = model.state_dict()
    other.load_state_dict(state, strict=True)
    assert state.keys() == {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    assert not any("table" in key for key in state)
    assert torch.equal(model(*batch())[0], other.eval()(*batch())[0])


@pytest.mark.parametrize("positions", ["xl", "rotary", "none"])
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_gets_a_finite_gradient(name, stem, positions):
    model = small(name, stem=stem, positions=positions).train()
    y, _ = model(*batch())
    (y * torch.randn_like(y)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_export_with_dynamic_batch_and_time(name):
    model, (x, mask) = small(name).eval(), batch()
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("time", min=17, max=4096)}
    # Some facts, such as that T is a multiple of itself, are beyond the prover: they become checks at run time.
    exported = torch.export.export(
        model, (x, mask), dynamic_shapes=(axes, axes), prefer_deferred_runtime_asserts_over_guards=True
    ).module()
    for items, frames in [(1, 17), (2, 18), (5, 19), (1, 20), (3, 57), (2, 100), (4, 333)]:
        x, mask = torch.randn(items, frames, 16), mask_of(torch.randint(1, frames + 1, (items,)), frames)
        (y, y_mask), (found, found_mask) = model(x, mask), exported(x, mask)
        assert torch.equal(y_mask, found_mask)
        torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_forward_intermediates_agrees_with_forward(name):
    model, (x, mask), seen = small(name, depth=4).eval(), batch(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(zero_padding(output, inputs[1])))
    y, y_mask = model(x, mask)
    expected, seen = seen, []
    found, found_mask, every = model.forward_intermediates(x, mask)
    assert torch.equal(found, y) and torch.equal(found_mask, y_mask)
    assert len(every) == 4 and all(torch.equal(a, b) for a, b in zip(every, expected, strict=True))
    assert torch.equal(every[-1], y)
    some = model.forward_intermediates(x, mask, [-1, 0, 2, 0])[2]
    assert all(torch.equal(a, expected[index]) for a, index in zip(some, [3, 0, 2, 0], strict=True))
    with pytest.raises(IndexError):
        model.forward_intermediates(x, mask, [4])


def test_reduced_blocks_run_at_half_the_rate():
    model = small("squeezeformer", depth=5, reduce_at=1, recover_at=4).eval()
    x, mask = batch(101)
    assert [y.shape[1] for y in model.forward_intermediates(x, mask)[2]] == [26, 13, 13, 13, 26]
    bias, seen = torch.randn(3, 2, 26, 26), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    model(x, mask, bias)
    assert seen[0] is bias and seen[4] is bias
    assert all(torch.equal(seen[index], bias[..., ::2, ::2]) for index in (1, 2, 3))
    with pytest.raises(ValueError, match="must be in order"):
        small("squeezeformer", depth=5, reduce_at=4, recover_at=1)
    with pytest.raises(ValueError, match="must be in order"):
        small("squeezeformer", depth=5, reduce_at=1, recover_at=None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_published_size(name):
    model, (encoder, total) = on_meta(name), PARAMETERS[name]
    statistics = sum(value.numel() for key, value in model.named_buffers() if "running" in key)
    with torch.device("meta"):
        head = CTC(model.dim, 128)
    assert count(model) == encoder
    assert count(model) + count(head) + statistics == total
    assert statistics == len(model.blocks) * (4 if name.startswith("squeezeformer") else 2) * model.dim


@pytest.mark.parametrize("name", BREAKDOWN)
def test_parameter_breakdown_of_squeezeformer(name):
    model = on_meta(name)
    D, blocks = model.dim, model.blocks
    found = (
        count(model.stem),
        sum(count(block.norms) for block in blocks),
        sum(count(block.attention_ff) + count(block.conv_ff) for block in blocks),
        sum(count(block.scales) for block in blocks),
        sum(count(block.conv) for block in blocks),
        sum(count(block.attention) for block in blocks),
        count(model.reduction),
        count(model.recovery),
        count(model.norm),
    )
    assert found == BREAKDOWN[name] and sum(found) == PARAMETERS[name][0]
    per_block = [8 * D, 16 * D**2 + 10 * D, 8 * D, 4 * D**2 + 71 * D, 5 * D**2 + 6 * D]
    assert [value / len(blocks) for value in found[1:6]] == per_block
    assert found[:1] + found[6:] == (21 * D**2 + 22 * D, D**2 + 7 * D, D**2 + D, 2 * D)


@pytest.mark.parametrize("name", [name for name in list_backbones("conformer_*") if name not in PARAMETERS])
def test_parameters_of_other_conformers_follow_the_formula(name):
    model = on_meta(name)
    D, kernel = model.dim, model.blocks[0].conv.depthwise.kernel
    block = (16 * D**2 + 10 * D) + (5 * D**2 + 6 * D) + (3 * D**2 + (kernel + 6) * D) + 10 * D
    stem = (9 * D + D) + (9 * D**2 + D) + (20 * D**2 + D)
    assert count(model) == stem + len(model.blocks) * block
