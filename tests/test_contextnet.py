"""ContextNet: its gates and its block written out plainly, published sizes, and what its arguments do."""

import pytest
import torch
from test_lengths import batch, ceil_of, count, on_meta, small
from test_parts import LENGTHS, MASK, close, frames, perturbed
from torch import nn
from variants import SMALL

from seqformer.backbones import contextnet
from seqformer.errors import InputError
from seqformer.model import create_backbone
from seqformer.nn.conv import DepthwiseConv
from seqformer.nn.gate import EfficientChannelAttention, SqueezeExcite, window_mean
from seqformer.nn.mask import stride_mask
from seqformer.nn.norm import MaskedBatchNorm

torch.set_num_threads(1)

# Width, encoder, its gates, and the encoder with the paper's decoder: reference/backbones.md, section 4, counts 11.0 /
# 28.1 / 95.8 M for the last, where the paper has 10.8 / 31.4 / 112.7 M.
PARAMETERS = {
    "contextnet_s": (0.5, 5_765_208, 255_992, 10_973_912),
    "contextnet_m": (1.0, 22_681_296, 1_013_744, 28_094_800),
    "contextnet_l": (2.0, 89_967_552, 4_034_528, 95_790_656),
}
# The same section's table: blocks, convolutions, channels.
TABLE = [(1, 1, 256), (10, 5, 256), (11, 5, 512), (1, 1, 640)]


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def plain_norm(norm: MaskedBatchNorm, x: torch.Tensor) -> torch.Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def plain_depthwise(module: DepthwiseConv, x: torch.Tensor, causal: bool) -> torch.Tensor:
    """One item, frame by frame: x (T, C) -> (ceil(T / stride), C)."""
    kernel, left = module.kernel, module.kernel - 1 if causal else (module.kernel - 1) // 2
    out = []
    for centre in range(0, len(x), module.stride):
        taps = [(tap, centre + tap - left) for tap in range(kernel) if 0 <= centre + tap - left < len(x)]
        out.append(module.bias + sum(module.weight[:, 0, tap] * x[frame] for tap, frame in taps))
    return torch.stack(out)


def plain_gate(gate: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    """One item: x (T, C) -> (T, C)."""
    if gate is None:
        return x
    mean, channels = x.mean(dim=0), x.shape[1]
    if isinstance(gate, SqueezeExcite):
        hidden = swish(gate.squeeze.weight @ mean + gate.squeeze.bias)
        return x * torch.sigmoid(gate.excite.weight @ hidden + gate.excite.bias)
    weight = gate.conv.weight[0, 0]
    left = (len(weight) - 1) // 2
    near = [
        sum(weight[tap] * mean[c + tap - left] for tap in range(len(weight)) if 0 <= c + tap - left < channels)
        for c in range(channels)
    ]
    return x * torch.sigmoid(torch.stack(near))


GATES = {
    "se": lambda: SqueezeExcite(8, ratio=3),
    "se_narrow": lambda: SqueezeExcite(8, ratio=100),
    "eca": lambda: EfficientChannelAttention(8),
    "eca_even": lambda: EfficientChannelAttention(8, kernel=4),
}


@torch.no_grad()
@pytest.mark.parametrize("make", GATES.values(), ids=GATES)
def test_gates_written_out(make):
    gate, x = perturbed(make()), frames(3, 7, 8).masked_fill(~MASK[..., None], 1e9)
    y = gate(x, MASK)
    for item, length in enumerate(LENGTHS.tolist()):
        close(y[item, :length], plain_gate(gate, x[item, :length]))
    assert gate(x, torch.zeros_like(MASK)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 50])
def test_a_window_holds_the_real_frames_around_each(window):
    x = frames(3, 7, 8).masked_fill(~MASK[..., None], float("nan"))
    found, gate = window_mean(x, MASK, window), perturbed(SqueezeExcite(8, window=window))
    scaled, whole = gate(x, MASK), perturbed(SqueezeExcite(8))(x, MASK)
    assert found.isfinite().all()
    for item, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            around = x[item, max(0, t - (window - 1) // 2) : min(length, t + window // 2 + 1)].mean(dim=0)
            close(found[item, t], around)
            hidden = swish(gate.squeeze(around))
            close(scaled[item, t], x[item, t] * gate.excite(hidden).sigmoid())
        if window == 50:
            close(scaled[item, :length], whole[item, :length])


def test_means_of_gates_are_float32_under_bfloat16():
    x, mask = torch.ones(1, 1000, 8, dtype=torch.bfloat16), torch.ones(1, 1000, dtype=torch.bool)
    assert window_mean(x, mask, 999).dtype == torch.float32 and (window_mean(x, mask, 999) == 1).all()
    gate = SqueezeExcite(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(x, mask).dtype == torch.bfloat16
    seen = []
    gate.squeeze.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        gate(x, mask)
    assert seen[0].dtype == torch.float32 and (seen[0] == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["se", "eca", "none"])
@pytest.mark.parametrize(("convs", "stride", "shortcut"), [(3, 2, True), (2, 1, True), (1, 1, False), (1, 2, False)])
def test_block(convs, stride, shortcut, kind, causal):
    """reference/backbones.md, section 4: stride on the last convolution, gate after it, Swish(gate(f(x)) + P(x))."""
    gate = contextnet.make_gate(kind, 8, ratio=4, window=None)
    block = perturbed(contextnet.Block(6, 8, convs, 5, stride, gate, shortcut, causal, dropout=0.5))
    x = frames(3, 7, 6)
    y, y_mask = block(x, MASK)
    assert len(block.convs) == convs and torch.equal(y_mask, stride_mask(MASK, stride))
    for item, length in enumerate(LENGTHS.tolist()):
        z = x[item, :length]
        for conv in block.convs:
            assert conv.depthwise.stride == (stride if conv is block.convs[-1] else 1)
            z = plain_depthwise(conv.depthwise, z, causal) @ conv.pointwise.weight.T
            z = swish(plain_norm(conv.norm, z))
        z = plain_gate(gate, z)
        if shortcut:
            z = z + plain_norm(block.shortcut.norm, x[item, :length:stride] @ block.shortcut.pointwise.weight.T)
        close(y[item, : len(z)], swish(z))


def test_the_23_blocks_of_the_paper():
    model = on_meta("contextnet_m")
    convs = [repeats for blocks, repeats, _ in TABLE for _ in range(blocks)]
    channels = [width for blocks, _, width in TABLE for _ in range(blocks)]
    assert [len(block.convs) for block in model.blocks] == convs
    assert [block.convs[-1].norm.weight.numel() for block in model.blocks] == channels
    strides = {index: conv.depthwise.stride for index, block in enumerate(model.blocks) for conv in block.convs}
    assert [index for index, stride in strides.items() if stride == 2] == [3, 7, 14]
    assert [block.shortcut is not None for block in model.blocks] == [False] + [True] * 21 + [False]
    assert {conv.depthwise.kernel for block in model.blocks for conv in block.convs} == {5}
    assert (model.stride, model.dim) == (8, 640)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_preset(name):
    model, (alpha, encoder, gates, total) = on_meta(name), PARAMETERS[name]
    found, gated, before = 0, 0, 80
    for blocks, convs, channels in TABLE:
        dim = int(channels * alpha)
        for _ in range(blocks):
            widths = [before] + [dim] * (convs - 1)
            found += sum(width * 5 + width + width * dim + 2 * dim for width in widths)
            found += before * dim + 2 * dim if convs > 1 else 0
            gated += dim * (dim // 8) + dim // 8 + (dim // 8) * dim + dim
            before = dim
    assert found + gated == count(model) == encoder
    assert gated == sum(count(block.gate) for block in model.blocks) == gates
    embedding, lstm = 1024 * 640, 4 * (640 * 640 + 640 * 640 + 2 * 640)
    joint = (model.dim * 640 + 640) + 640 * 640 + (640 * 1024 + 1024)
    assert encoder + embedding + lstm + joint == total


@torch.no_grad()
def test_causal_without_a_gate_sees_no_later_frame():
    model, (x, mask) = small({"name": "contextnet"} | SMALL["contextnet"], gate="none", causal=True).eval(), batch(64)
    y, _ = model(x, mask)
    for frame in (1, 8, 33):
        other = x.clone()
        other[:, frame:] += 1
        same = (model(other, mask)[0] == y)[0].all(dim=1)
        assert same[: ceil_of(frame, 8)].all() and not same.all()


def test_arguments():
    assert [contextnet.rounded(channels) for channels in (1, 8, 11, 12, 20, 640)] == [8, 8, 8, 16, 24, 640]
    model = create_backbone("contextnet", in_dim=4, width=1 / 32, kernel=3, convs=2, reduce_at=[1], se_ratio=4)
    assert (model.stride, model.dim, len(model.blocks)) == (2, 24, 23)
    assert model.blocks[5].gate.squeeze.weight.shape == (2, 8) and len(model.blocks[5].convs) == 2
    assert model.blocks[5].convs[0].depthwise.kernel == 3
    for wrong in ((23,), (-1,), (2, 2)):
        with pytest.raises(InputError, match="must be different blocks of 0 to 22"):
            create_backbone("contextnet_s", in_dim=4, reduce_at=wrong)
    with pytest.raises(InputError, match="window 5 needs gate 'se', found 'eca'"):
        create_backbone("contextnet_s", in_dim=4, gate="eca", window=5)
    with pytest.raises(InputError, match="window 0 must be at least 1 frame"):
        create_backbone("contextnet_s", in_dim=4, window=0)
