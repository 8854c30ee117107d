"""Each part of seqformer.nn, and each backbone's block, equals its definition written out plainly."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqformer.model import create_backbone
from seqformer.nn.attention import Attention
from seqformer.nn.conv import ConvModule, DepthwiseConv, TimeRecovery, TimeReduction, TimeUpsample
from seqformer.nn.drop_path import drop_path
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.mask import mask_of, masked_mean, zero_padding
from seqformer.nn.norm import LearnedScale, MaskedBatchNorm
from seqformer.nn.positions import relative_shift, rotate, sinusoid_table

torch.set_num_threads(1)

LENGTHS = torch.tensor([7, 3, 6])
MASK = mask_of(LENGTHS, 7)


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, every parameter and running statistic at random."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            buffer.copy_(noise + 0.5 if name.endswith("var") else noise)
    return module.eval()


def frames(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def sinusoid(distance: int, dim: int) -> torch.Tensor:
    angles = [distance / 10000 ** (2 * (channel // 2) / dim) for channel in range(dim)]
    values = [math.cos(angle) if channel % 2 else math.sin(angle) for channel, angle in enumerate(angles)]
    return torch.tensor(values, dtype=torch.float64)


def plain_attention(module: Attention, x: torch.Tensor, length: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """One item, pair by pair: ((q_i + u)·k_j + (q_i + v)·P(i - j)) / sqrt(K), softmax over real keys."""
    T, H = len(x), module.heads
    q, k, v = (part(x).reshape(T, H, -1) for part in (module.query, module.key, module.value))
    heads = []
    for head in range(H):
        score = torch.full((T, length), 0.0, dtype=x.dtype)
        for i in range(T):
            for j in range(length):
                p = module.position(sinusoid(i - j, x.shape[1])).reshape(H, -1)[head]
                content = (q[i, head] + module.content_bias[head]) @ k[j, head]
                position = (q[i, head] + module.position_bias[head]) @ p
                score[i, j] = (content + position) / math.sqrt(k.shape[-1])
        if bias is not None:
            score = score + bias[head, :, :length]
        heads.append(score.softmax(dim=-1) @ v[:length, head])
    return module.out(torch.cat(heads, dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("with_bias", [False, True])
def test_xl_attention_pair_by_pair(with_bias):
    module, x = perturbed(Attention(6, heads=2)), frames(3, 7, 6)
    bias = frames(3, 2, 7, 7, seed=2) if with_bias else None
    y = module(x, MASK, sinusoid_table(7, 6, x), bias)
    for item, length in enumerate(LENGTHS.tolist()):
        expected = plain_attention(module, x[item], length, bias[item] if with_bias else None)
        close(y[item, :length], expected[:length], 1e-6)  # the table is float32


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_without_a_table_is_softmax_attention(positions, with_bias):
    module, x = perturbed(Attention(6, heads=2, positions=positions)), frames(3, 7, 6)
    bias = frames(3, 2, 7, 7, seed=2) if with_bias else torch.zeros(3, 2, 7, 7)
    y = module(x, MASK, bias=bias if with_bias else None)
    q, k, v = (part(x).reshape(3, 7, 2, 3).transpose(1, 2) for part in (module.query, module.key, module.value))
    if positions == "rotary":
        q, k = rotate(q), rotate(k)
    score = (q @ k.mT / 3**0.5 + bias).masked_fill(~MASK[:, None, None], -math.inf)
    expected = module.out((score.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
    close(zero_padding(y, MASK), zero_padding(expected, MASK), 1e-6)


def test_attention_says_which_width_does_not_fit():
    with pytest.raises(ValueError, match="dim 10 is not a multiple of heads 4"):
        Attention(10, heads=4)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_relative_shift_is_a_gather(size):
    score = frames(2, 3, size, 2 * size - 1).requires_grad_()
    column = size - 1 - torch.arange(size)[:, None] + torch.arange(size)
    expected = score.gather(-1, column.expand(2, 3, size, size))
    assert torch.equal(relative_shift(score), expected)
    assert torch.equal(relative_shift(score.transpose(0, 1).contiguous().transpose(0, 1)), expected)
    weight = frames(2, 3, size, size, seed=3)
    (found,), (wanted,) = (torch.autograd.grad((y * weight).sum(), score) for y in (relative_shift(score), expected))
    assert torch.equal(found, wanted)


def test_sinusoid_table_by_distance():
    for dim in (6, 5):
        table = sinusoid_table(4, dim, torch.zeros(1))
        expected = torch.stack([sinusoid(distance, dim) for distance in range(3, -4, -1)])
        close(table.double(), expected, 1e-6)


@pytest.mark.parametrize("width", [6, 5])
def test_rotary_scores_depend_on_the_distance_alone(width):
    q, k = frames(width).expand(1, 1, 9, -1), frames(width, seed=2).expand(1, 1, 9, -1)
    score = (rotate(q) @ rotate(k).mT)[0, 0]
    for distance in range(-8, 9):
        diagonal = score.diagonal(distance)
        close(diagonal, diagonal[:1].expand_as(diagonal), 1e-6)
    assert score[0].std() > 0.01
    close(rotate(q).norm(dim=-1), q.norm(dim=-1), 1e-6)
    assert torch.equal(rotate(q)[..., 0, :], q[..., 0, :])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 31])
def test_depthwise_conv_is_a_grouped_conv1d(kernel, stride, causal):
    module = perturbed(DepthwiseConv(4, kernel, stride, causal))
    left = kernel - 1 if causal else (kernel - 1) // 2
    for size in (1, 2, 7, 40):
        x = frames(2, size, 4).requires_grad_()
        padded = F.pad(x.mT, (left, kernel - 1 - left))
        expected = F.conv1d(padded, module.weight, module.bias, stride=stride, groups=4).mT
        y = module(x, torch.ones(2, size, dtype=torch.bool))
        assert y.shape[1] == math.ceil(size / stride)
        close(y, expected)
        close(*(torch.autograd.grad(z.square().sum(), x)[0] for z in (y, expected)))


def plain_norm(module: MaskedBatchNorm) -> nn.BatchNorm1d:
    plain = nn.BatchNorm1d(len(module.weight), eps=module.eps, momentum=module.momentum).double()
    state = module.state_dict() | {"num_batches_tracked": torch.tensor(0)}
    plain.load_state_dict({key: value.clone() for key, value in state.items()})
    return plain


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [0.0, 100.0])
def test_masked_batch_norm_is_batch_norm_of_the_real_frames(training, padding):
    module, values = perturbed(MaskedBatchNorm(5)), 3 * frames(3, 7, 5) + 10
    plain = plain_norm(module).train(training)
    x = values.clone().requires_grad_()
    filled = x.masked_fill(~MASK[..., None], padding)
    y, weight = module.train(training)(filled, MASK)[MASK], frames(16, 5, seed=4)
    expected = plain(x[MASK])
    close(y, expected)
    found = torch.autograd.grad((y * weight).sum(), [x, module.weight, module.bias])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, plain.weight, plain.bias])
    for gradient, truth in zip(found, wanted, strict=True):
        close(gradient, truth)
    close(module.running_mean, plain.running_mean, 1e-7)  # the pace is float32
    close(module.running_var, plain.running_var, 1e-7)
    assert torch.equal(module.eval()(filled.masked_fill(~MASK[..., None], math.nan), MASK)[MASK], module(x, MASK)[MASK])


def test_masked_batch_norm_keeps_its_digits_beside_a_large_mean():
    x = (frames(1, 200, 3) * 0.01 + torch.tensor([0.0, 30.0, -1000.0])).float()
    module = MaskedBatchNorm(3)
    y = module(x, torch.ones(1, 200, dtype=torch.bool))
    exact = (x.double() - x.double().mean(1)) / (x.double().var(1, unbiased=False) + module.eps).sqrt()
    # float32 itself resolves 1e-4 of -1000; a difference of squares would resolve nothing of a variance of 1e-4.
    assert (y[..., :2] - exact[..., :2]).abs().max() < 2e-3
    close(module.running_var.double(), 1 - 0.015 + 0.015 * x.double().var(1)[0], 1e-6)


def test_masked_batch_norm_of_one_frame_and_of_none():
    module = MaskedBatchNorm(3)
    y = module(torch.ones(1, 4, 3), mask_of(torch.tensor([1]), 4))
    assert not y[0, 0].any() and module.running_var.eq(1 - 0.015).all()
    before = module.running_mean.clone(), module.running_var.clone()
    assert module(torch.ones(1, 4, 3), mask_of(torch.tensor([0]), 4)).isfinite().all()
    assert torch.equal(module.running_mean, before[0]) and torch.equal(module.running_var, before[1])


PROCESSES = """
import sys, torch, torch.distributed as dist
from seqformer.nn.norm import MaskedBatchNorm
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
x, mask, weight = torch.load(sys.argv[3])
module, mine = MaskedBatchNorm(5), slice(0, 2) if sys.argv[2] == "0" else slice(2, 3)
x.requires_grad_()
y = module(x[mine], mask[mine])
(y * weight[mine]).sum().backward()
torch.save([y.detach(), x.grad[mine], module.running_mean, module.running_var], sys.argv[3] + sys.argv[2])
dist.destroy_process_group()
"""


def test_masked_batch_norm_counts_the_frames_of_all_processes(tmp_path):
    x, weight = frames(3, 7, 5).float(), frames(3, 7, 5, seed=2).float() * MASK[..., None]
    torch.save([x, MASK, weight], tmp_path / "data")
    files = [str(tmp_path / "group"), str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", PROCESSES, files[0], str(rank), files[1]], env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    parts = [torch.load(files[1] + str(rank)) for rank in range(2)]
    module, x = MaskedBatchNorm(5), x.requires_grad_()
    y = module(x, MASK)
    (y * weight).sum().backward()
    close(torch.cat([part[0] for part in parts]), y.detach(), 1e-5)
    close(torch.cat([part[1] for part in parts]), x.grad, 1e-5)
    for part in parts:
        close(part[2], module.running_mean, 1e-6)
        close(part[3], module.running_var, 1e-6)


def test_learned_scale_starts_as_identity_and_scales_channels():
    assert torch.equal(LearnedScale(4)(frames(2, 3, 4).float()), frames(2, 3, 4).float())
    module, x = perturbed(LearnedScale(4)), frames(2, 3, 4)
    close(module(x), x * module.scale + module.bias)


def plain_ff(module: FeedForward, x: torch.Tensor) -> torch.Tensor:
    wide = x @ module.expand.weight.T + module.expand.bias
    return (wide * torch.sigmoid(wide)) @ module.project.weight.T + module.project.bias


def test_feed_forward():
    module, x = perturbed(FeedForward(4, factor=3, dropout=0.5)), frames(2, 3, 4)
    assert module.expand.out_features == 12
    close(module(x), plain_ff(module, x))


def test_gated_feed_forward():
    """SwiGLU: Swish of one half of a projection times the other half."""
    module, x = perturbed(FeedForward(4, factor=1.5, glu=True, bias=False)), frames(2, 3, 4)
    gate, value = x @ module.expand.weight[:6].T, x @ module.expand.weight[6:].T
    close(module(x), (gate * torch.sigmoid(gate) * value) @ module.project.weight.T)


def plain_conv(module: ConvModule, x: torch.Tensor, mask: torch.Tensor, activation: str) -> torch.Tensor:
    wide = x @ module.expand.weight.T + module.expand.bias
    half = wide.shape[-1] // 2
    x = wide * torch.sigmoid(wide) if activation == "swish" else wide[..., :half] * torch.sigmoid(wide[..., half:])
    x = x * mask[..., None]
    kernel = module.depthwise.kernel
    padded = F.pad(x.mT, ((kernel - 1) // 2, kernel // 2))
    x = F.conv1d(padded, module.depthwise.weight, module.depthwise.bias, groups=x.shape[-1]).mT
    norm = module.norm
    x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return (x * torch.sigmoid(x)) @ module.project.weight.T + module.project.bias


@pytest.mark.parametrize("kernel", [5, 4])
@pytest.mark.parametrize("activation", ["swish", "glu"])
def test_conv_module(activation, kernel):
    module, x = perturbed(ConvModule(4, kernel, activation, dropout=0.5)), frames(3, 7, 4)
    assert len(module.norm.weight) == (8 if activation == "swish" else 4)
    close(module(x, MASK), plain_conv(module, x, MASK, activation))


def test_time_reduction_and_recovery():
    for size in (1, 2, 7, 8):
        reduction, recovery = perturbed(TimeReduction(4)), perturbed(TimeRecovery(4))
        x, mask = frames(3, size, 4), mask_of(torch.tensor([size, 1, (size + 1) // 2]), size)
        y, y_mask = reduction(x, mask)
        padded = F.pad((x * mask[..., None]).mT, (2, 3))
        expected = F.conv1d(padded, reduction.depthwise.weight, reduction.depthwise.bias, stride=2, groups=4).mT
        half = (size + 1) // 2
        close(y, reduction.pointwise(expected[:, :half]))
        assert y_mask.shape == (3, half) and y_mask.sum(dim=1).tolist() == [half, 1, (half + 1) // 2]
        found = recovery(y, x)
        assert found.shape == x.shape
        for t in range(size):
            close(found[:, t], recovery.linear(y[:, t // 2]) + x[:, t])


def test_masked_mean_counts_real_frames():
    x = frames(3, 7, 4).masked_fill(~MASK[..., None], math.nan)
    close(masked_mean(x, MASK), torch.stack([x[i, :length].mean(0) for i, length in enumerate(LENGTHS)]))
    assert not masked_mean(x, torch.zeros_like(MASK)).any()


def made_block(name: str, **keywords) -> nn.Module:
    model = create_backbone(name, in_dim=6, dim=6, depth=1, heads=2, ff_factor=2, dropout=0.5, **keywords)
    return perturbed(model.blocks[0])


@torch.no_grad()
def test_squeezeformer_block():
    """reference/backbones.md, section 2, item 3: attention, FF, conv, FF; scale before, LayerNorm after, factor 1."""
    block, x = made_block("squeezeformer", kernel=5), frames(3, 7, 6)
    y = block(x, MASK, sinusoid_table(7, 6, x), None)
    for item, length in enumerate(LENGTHS.tolist()):
        z, one = x[item, :length], torch.ones(1, length, dtype=torch.bool)
        for number, branch in enumerate(block.branches):
            scaled = z * block.before[number].scale + block.before[number].bias
            if number == 0:
                change = plain_attention(branch, scaled, length)
            elif number == 2:
                change = plain_conv(branch, scaled[None], one, "swish")[0]
            else:
                change = plain_ff(branch, scaled)
            z = F.layer_norm(z + change, (6,), block.after[number].weight, block.after[number].bias, 1e-5)
        close(y[item, :length], z, 1e-5)


@torch.no_grad()
def test_conformer_block():
    """Conformer paper, section 2.4: half FF, attention, conv, half FF, LayerNorm before each and at the end."""
    block, x = made_block("conformer", kernel=4), frames(3, 7, 6)
    y = block(x, MASK, sinusoid_table(7, 6, x), None)
    for item, length in enumerate(LENGTHS.tolist()):
        z, one = x[item, :length], torch.ones(1, length, dtype=torch.bool)
        norms = [
            lambda v, n=norm: F.layer_norm(v, (6,), n.weight, n.bias, 1e-5) for norm in [*block.before, block.final]
        ]
        z = z + plain_ff(block.branches[0], norms[0](z)) / 2
        z = z + plain_attention(block.branches[1], norms[1](z), length)
        z = z + plain_conv(block.branches[2], norms[2](z)[None], one, "glu")[0]
        z = norms[4](z + plain_ff(block.branches[3], norms[3](z)) / 2)
        close(y[item, :length], z, 1e-5)


@torch.no_grad()
def test_the_scale_of_a_branch_may_follow_it():
    block, x = made_block("squeezeformer", layout="FF", norm_at="post_scale_out"), frames(3, 7, 6)
    z = x
    for branch, scale, norm in zip(block.branches, block.scales, block.after, strict=True):
        z = F.layer_norm(z + plain_ff(branch, z) * scale.scale + scale.bias, (6,), norm.weight, norm.bias, 1e-5)
    close(block(x, MASK, None, None), z)


def test_a_layout_is_the_order_of_the_branches():
    model = create_backbone("squeezeformer", in_dim=6, dim=6, depth=2, heads=2, layout=["C3AF", "fACf"])
    kinds = {Attention: "A", ConvModule: "C", FeedForward: "F"}
    assert ["".join(kinds[type(branch)] for branch in block.branches) for block in model.blocks] == ["CCCAF", "FACF"]
    assert [block.letters for block in model.blocks] == ["CCCAF", "fACf"]


def test_the_long_skip_adds_the_stem_to_every_block():
    model = create_backbone(
        "squeezeformer", in_dim=6, dim=6, depth=3, heads=2, stem="linear", input_norm=False, long_skip=True
    ).eval()
    for block in model.blocks:  # a block that gives nothing shows what is added
        block.forward = lambda x, *_: torch.zeros_like(x)
    x = frames(3, 7, 6).float()
    expected = zero_padding(6**0.5 * model.stem.linear(x), MASK)
    _, _, every = model.forward_intermediates(x, MASK)
    for y in every:
        close(y, expected, 1e-6)


def test_drop_path_leaves_out_items_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    y = drop_path(x, 0.25, training=True)
    assert set(y.unique().tolist()) == {0.0, y.max().item()} and y.max() == pytest.approx(4 / 3)
    assert torch.equal(y, y[:, :1, :1].expand_as(y)) and y.mean() == pytest.approx(1, abs=0.03)
    assert drop_path(x, 0.25, training=False) is x and drop_path(x, 0.0, training=True) is x
    model = create_backbone("squeezeformer", in_dim=6, dim=6, depth=3, heads=2, drop_path=0.2)
    assert [block.rate for block in model.blocks] == [0, 0.1, 0.2]


def test_upsampling_gives_each_frame_its_own_share():
    module, x = perturbed(TimeUpsample(4, stride=3)), frames(2, 3, 4)
    y = module(x, 8)
    assert y.shape == (2, 8, 4)
    for t in range(8):
        linear = x[:, t // 3] @ module.conv.weight[:, :, t % 3] + module.conv.bias
        close(y[:, t], linear * torch.sigmoid(linear))
