"""Lengths and sizes are exact for every length and preset; models save, load, train, export and show their middle."""

import pytest
import torch
from torch import nn
from variants import BACKBONES, NARROW, STEMS, VARIANTS, changed, title

from seqformer.errors import InputError
from seqformer.frontends.audio import LogMel
from seqformer.heads.ctc import CTC
from seqformer.model import create_backbone
from seqformer.nn.attention import Attention
from seqformer.nn.conv import ConvModule
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.mask import lengths_of, mask_of, stride_mask, strided, zero_padding
from seqformer.nn.norm import LayerNorm, LearnedScale, MaskedBatchNorm
from seqformer.nn.subsample import make_stem

torch.set_num_threads(1)

LONGEST = 1024
TINY = dict(dim=4, heads=1, ff_factor=1)  # hundreds of forwards each
SHORT = {
    "squeezeformer": TINY | dict(depth=2, reduce_at=0, recover_at=1, kernel=3, positions="none"),
    "conformer": TINY | dict(depth=1, kernel=4, positions="none"),
    "fastconformer": TINY | dict(depth=1, stem_channels=2, positions="none"),
    "conformer_swb": TINY | dict(depth=1, kernel=4, stem_channels=2),
    "contextnet": dict(channels=(8, 8), reduce_at=(0, 1), convs=1),
}

PARTS = (LayerNorm, FeedForward, LearnedScale, ConvModule, Attention)
# Export takes seconds: one of each class, and the choices that bring operations of their own. A stem's other strides
# (last run on 2026-11-21) and the presets are slow tests.
OWN = {"positions", "stem", "context", "gate", "norm", "upsample", "reduce_at"}
CHOICES = [part for part in VARIANTS if part["name"] == "squeezeformer" and OWN & changed(part).keys()]
KEPT = {part["stem"]: part for part in CHOICES if "stem" in part}  # of each stem one stride
SLOW = [part for part in CHOICES if "stem" in part and part not in KEPT.values()] + NARROW
EXPORTED = BACKBONES + [part for part in CHOICES if part not in SLOW]

# reference/backbones.md, section 1: parameters of the encoder, and with the CTC head of 128 units and the running
# statistics of BatchNorm.
PARAMETERS = {
    "squeezeformer_xs": (9_013_248, 9_041_024),
    "squeezeformer_s": (18_540_424, 18_579_752),
    "squeezeformer_sm": (28_151_808, 28_201_088),
    "squeezeformer_m": (55_580_256, 55_647_776),
    "squeezeformer_ml": (124_959_744, 125_062_272),
    "squeezeformer_l": (236_171_520, 236_309_888),
    # Ours: 192 = 4 x 48 and 320 = 4 x 80, with a head of D x 128 + 128 and two numbers of each of 2 D depth channels.
    "squeezeformer_s_192": (17_798_784, 17_798_784 + 192 * 128 + 128 + 2 * 2 * 192 * 18),
    "squeezeformer_m_320": (54_224_640, 54_224_640 + 320 * 128 + 128 + 2 * 2 * 320 * 20),
    "conformer_ctc_s": (8_711_136, 8_734_304),
    "conformer_ctc_m": (27_328_000, 27_369_088),
    "conformer_ctc_l": (121_436_160, 121_520_256),
}
# Section 1.4, NeMo's count of the encoder.
FASTCONFORMER = {
    "fastconformer_s": 12_600_240,
    "fastconformer_m": 26_128_640,
    "fastconformer_l": 108_762_112,
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
        return create_backbone(name, **{"in_dim": 80} | keywords)


def small(part: dict, **keywords) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(**part | {"in_dim": 16} | keywords)


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
@pytest.mark.parametrize(("stem", "stride"), [(stem, stride) for stem in STEMS for stride in STEMS[stem]])
def test_stem_length_for_every_length(stem, stride):
    module = make_stem(stem, 4, 2, stride, channels=2).eval()
    assert module.stride == stride
    for frames in range(1, LONGEST + 1):
        x, mask = module(torch.ones(1, frames, 4), mask_of(torch.tensor([frames]), frames))
        assert x.shape == (1, ceil_of(frames, stride), 2)
        assert mask.shape == x.shape[:2] and mask.all()
    lengths = torch.arange(1, LONGEST + 1, 3)
    x, mask = module(torch.ones(len(lengths), LONGEST, 4), mask_of(lengths, LONGEST))
    assert lengths_of(mask).tolist() == [ceil_of(length, stride) for length in lengths.tolist()]


def test_a_stem_says_which_strides_it_has():
    assert {make_stem(stem, 4, 2).stride for stem in STEMS} == {4, 1, 3, 16}
    for stem, stride in (("linear", 2), ("conv2d", 3), ("vgg", 8), ("signal", 1)):
        with pytest.raises(ValueError, match=f"stem '{stem}' has no stride {stride}; it has"):
            make_stem(stem, 4, 2, stride)
    with pytest.raises(ValueError, match="keeps the 4 features of a frame, and dim is 2"):
        make_stem("none", 4, 2)
    x, mask = torch.full((1, 3, 4), float("nan")), torch.tensor([[True, True, False]])
    assert make_stem("none", 4, 4)(x, mask)[0].isnan().sum() == 8


@torch.no_grad()
@pytest.mark.parametrize("name", SHORT)
def test_backbone_length_for_every_length(name):
    torch.manual_seed(0)
    model = create_backbone(name, in_dim=4, **SHORT[name]).eval()
    stride = model.stride
    for frames in range(1, LONGEST + 1):
        y, mask = model(torch.ones(1, frames, 4), mask_of(torch.tensor([frames]), frames))
        assert y.shape == (1, ceil_of(frames, stride), model.dim) and mask.shape == y.shape[:2] and mask.all()
    size = 64
    for last in (size, 257, LONGEST):
        lengths = torch.arange(last - size + 1, last + 1)
        y, mask = model(torch.randn(size, last + 3, 4), mask_of(lengths, last + 3))
        expected = [ceil_of(length, stride) for length in lengths.tolist()]
        assert y.shape == (size, ceil_of(last + 3, stride), model.dim)
        assert lengths_of(mask).tolist() == lengths_of(y.any(dim=2)).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("part", VARIANTS + NARROW, ids=title)
def test_length_of_a_variant(part):
    model = small(part).eval()
    for frames in (1, 2, 7, 31, 32, 33, 64):
        lengths = torch.arange(1, frames + 1)
        y, mask = model(torch.randn(frames, frames, 16), mask_of(lengths, frames))
        assert y.shape[1] == mask.shape[1] == ceil_of(frames, model.stride)
        assert lengths_of(mask).tolist() == [ceil_of(length, model.stride) for length in lengths.tolist()]


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
@pytest.mark.parametrize("part", BACKBONES + VARIANTS + NARROW, ids=title)
def test_state_dict_round_trip(part):
    model, other = small(part).eval(), small(part)
    for parameter in other.parameters():
        parameter.normal_()
    state = model.state_dict()
    other.load_state_dict(state, strict=True)
    statistics = {name for name, _ in model.named_buffers() if "running" in name}
    assert state.keys() == {name for name, _ in model.named_parameters()} | statistics
    assert torch.equal(model(*batch())[0], other.eval()(*batch())[0])


@pytest.mark.parametrize("part", BACKBONES + VARIANTS + NARROW, ids=title)
def test_every_parameter_gets_a_finite_gradient(part):
    model = small(part).train()
    y, _ = model(*batch())
    (y * torch.randn_like(y)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("part", EXPORTED + [pytest.param(part, marks=pytest.mark.slow) for part in SLOW], ids=title)
def test_export_with_dynamic_batch_and_time(part):
    model, (x, mask) = small(part).eval(), batch(333)
    shortest = 4 * 16 + 1 if part.get("stem") == "signal" else 33 if part.get("stem_stride") == 8 else 17
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("time", min=shortest, max=4096)}
    exported = torch.export.export(model, (x, mask), dynamic_shapes=(axes, axes)).module()
    for items, more in [(1, 0), (2, 1), (5, 2), (1, 3), (3, 40), (2, 83), (4, 316)]:
        frames = shortest + more
        x, mask = torch.randn(items, frames, 16), mask_of(torch.randint(1, frames + 1, (items,)), frames)
        (y, y_mask), (found, found_mask) = model(x, mask), exported(x, mask)
        assert torch.equal(y_mask, found_mask)
        torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("part", BACKBONES + VARIANTS + NARROW, ids=title)
def test_forward_intermediates_agrees_with_forward(part):
    model, (x, mask), seen = small(part).eval(), batch(), []
    depth = len(model.blocks)
    for block in model.blocks:  # ContextNet's give their mask, for each may change the frame rate
        block.register_forward_hook(
            lambda _, inputs, y: seen.append(zero_padding(*y) if isinstance(y, tuple) else zero_padding(y, inputs[1]))
        )
    y, y_mask = model(x, mask)
    expected, seen = seen, []
    found, found_mask, every = model.forward_intermediates(x, mask)
    assert torch.equal(found, y) and torch.equal(found_mask, y_mask) and torch.equal(every[-1], y)
    assert len(every) == depth
    if not getattr(model, "long_skip", False):  # with it, and at the input's rate, blocks give more than they hand on
        assert all(torch.equal(a, b) for a, b in zip(every, expected, strict=True))
    wanted = [-1, 0, depth // 2, 0]
    some = model.forward_intermediates(x, mask, wanted)[2]
    assert all(torch.equal(a, every[index]) for a, index in zip(some, wanted, strict=True))
    with pytest.raises(IndexError):
        model.forward_intermediates(x, mask, [depth])


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("part", NARROW, ids=title)
def test_length_of_a_preset_for_every_length(part):
    model = small(part, **({} if "width" in part else {"dim": 4, "heads": 1, "ff_factor": 1})).eval()
    for frames in range(1, LONGEST + 1):
        y, mask = model(torch.ones(1, frames, 16), mask_of(torch.tensor([frames]), frames))
        assert y.shape == (1, ceil_of(frames, model.stride), model.dim) and mask.shape == y.shape[:2] and mask.all()


def test_reduced_blocks_run_at_half_the_rate():
    model = small(BACKBONES[0], depth=5, reduce_at=1).eval()  # recovered before the last block when not said
    x, mask = batch(101)
    assert [y.shape[1] for y in model.forward_intermediates(x, mask)[2]] == [26, 13, 13, 13, 26]
    bias, seen = torch.randn(3, 2, 26, 26), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    model(x, mask, bias)
    assert seen[0] is bias and seen[4] is bias
    assert all(torch.equal(seen[index], bias[..., ::2, ::2]) for index in (1, 2, 3))


def test_a_bias_may_hold_maps_for_each_block():
    model, seen = small(BACKBONES[0], depth=3, reduce_at=1, recover_at=2, stem="linear").eval(), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    x, mask = batch(33)
    bias = torch.randn(3, 6, 33, 33)
    y, _ = model(x, mask, bias)
    assert torch.equal(seen[0], bias[:, :2]) and torch.equal(seen[2], bias[:, 4:])
    assert torch.equal(seen[1], bias[:, 2:4, ::2, ::2])
    same = bias[:, :2]
    torch.testing.assert_close(model(x, mask, same.repeat(1, 3, 1, 1)), model(x, mask, same), rtol=0, atol=0)
    assert not torch.allclose(model(x, mask, same)[0], y)
    for shape, words in (
        ((3, 4, 33, 33), "has 4 maps; expected one for each of 2 heads, or for each head of 3 blocks, 6"),
        ((3, 2, 33, 9), "over 33 x 9 frames, and the stem, of stride 1, leaves 33"),
    ):
        with pytest.raises(InputError, match=words):
            model(x, mask, torch.zeros(shape))


def test_reductions_nest_and_need_not_be_recovered():
    model = small(BACKBONES[0], depth=6, reduce_at=[1, 2], recover_at=[3, 5]).eval()
    x, mask = batch(101)
    assert [y.shape[1] for y in model.forward_intermediates(x, mask)[2]] == [26, 13, 7, 13, 13, 26]
    model = small(BACKBONES[0], depth=3, reduce_at=[0, 2], recover_at=[]).eval()
    assert model.stride == 16 and model(x, mask)[0].shape[1] == ceil_of(101, 16)
    for reduce_at, recover_at in ((4, 1), (1, 5), (1, 1), ([1, 2], None), (None, 2), ([1], [2, 3])):
        with pytest.raises(InputError, match=r"must be in order|needs recover_at"):
            small(BACKBONES[0], depth=5, reduce_at=reduce_at, recover_at=recover_at)


def test_choices_that_do_not_go_together_are_refused():
    for keywords, words in (
        (dict(layout="AXF"), "expected letters A, C, F or f"),
        (dict(layout=["AF"]), "layout has 1 strings for a depth of 3"),
        (dict(long_skip=True), "long_skip needs one frame rate"),
        (dict(upsample=True, recover_at=[]), "upsample needs a restored frame rate"),
        (dict(heads=5), "dim 12 is not a multiple of heads 5"),
    ):
        with pytest.raises(InputError, match=words):
            small(BACKBONES[0], **keywords)


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
    kinds = {kind: sum(count(m) for m in blocks.modules() if isinstance(m, kind)) for kind in PARTS}
    norms, ff, scales, conv, attention = kinds.values()
    inner = sum(count(m.norm) for m in blocks.modules() if isinstance(m, ConvModule))
    found = (
        count(model.stem),
        norms,
        ff,
        scales,
        conv,
        attention,
        count(model.reductions),
        count(model.recoveries),
        count(model.norm),
    )
    assert inner == sum(count(m) for m in blocks.modules() if isinstance(m, MaskedBatchNorm))
    assert found == BREAKDOWN[name] and sum(found) == PARAMETERS[name][0]
    per_block = [8 * D, 16 * D**2 + 10 * D, 8 * D, 4 * D**2 + 71 * D, 5 * D**2 + 6 * D]
    assert [value / len(blocks) for value in found[1:6]] == per_block
    assert found[:1] + found[6:] == (21 * D**2 + 22 * D, D**2 + 7 * D, D**2 + D, 2 * D)


@pytest.mark.parametrize("name", FASTCONFORMER)
def test_parameters_of_fastconformer(name):
    assert count(on_meta(name)) == FASTCONFORMER[name]


def test_parameters_of_the_switchboard_hybrid():
    """Section 5: 72.6 M in the blocks, 78.4 M with 9,001 states, 88.15 M with the auxiliary heads, to their digits."""
    model = on_meta("conformer_swb", in_dim=40)
    states = 512 * 9001 + 9001
    used = count(model) + states
    assert round(count(model.blocks) / 1e6, 1) == 72.6 and round(used / 1e6, 1) == 78.4
    assert round((used + 2 * (512 * 512 + 512 + states)) / 1e6, 2) == 88.15


@pytest.mark.parametrize("name", ["conformer_s", "conformer_m", "conformer_l"])
def test_parameters_of_other_conformers_follow_the_formula(name):
    model = on_meta(name)
    D, kernel = model.dim, model.blocks[0].branches[2].depthwise.kernel
    block = (16 * D**2 + 10 * D) + (5 * D**2 + 6 * D) + (3 * D**2 + (kernel + 6) * D) + 10 * D
    stem = (9 * D + D) + (9 * D**2 + D) + (20 * D**2 + D)
    assert count(model) == stem + len(model.blocks) * block
