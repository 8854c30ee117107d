"""What an eager CPU computes the fast way is what the plain way gives: outputs, gradients and statistics."""

import pytest
import torch
from torch import nn
from variants import BACKBONES, VARIANTS, title

from seqformer.model import create_backbone
from seqformer.nn import block_attention, subsample
from seqformer.nn.block_attention import attend_in_blocks, blocks_of
from seqformer.nn.conv import ConvModule
from seqformer.nn.dropout import STEPS, Dropout
from seqformer.nn.linear import joined
from seqformer.nn.mask import mask_of, zero_padding
from seqformer.nn.norm import LearnedScale, MaskedBatchNorm
from seqformer.nn.paths import fast_on_cpu, plain_paths

torch.set_num_threads(1)

LENGTHS = torch.tensor([70, 33, 1, 0])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Blocks and pieces so small that short sequences have several."""
    monkeypatch.setattr(block_attention, "FEWEST", 1)
    monkeypatch.setattr(block_attention, "MOST", 16)
    monkeypatch.setattr(subsample, "PIECE", 2**9)


def perturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def gradients(function, tensors: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    """The output of a function, and the gradients of tensors when ``grad`` comes back."""
    y = function()
    return [y.detach(), *torch.autograd.grad(y, tensors, grad.to(y.dtype).expand_as(y), allow_unused=True)]


def close(found: list, expected: list, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other.numel():
            assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


def test_plain_paths_are_asked_for():
    x = torch.zeros(1)
    assert fast_on_cpu(x) and not fast_on_cpu(torch.zeros(1, device="meta"))
    with plain_paths():
        assert not fast_on_cpu(x)
    assert fast_on_cpu(x)


@pytest.mark.parametrize("fill", [0.0, torch.nan, 1e38])
def test_padding_is_zeroed(fill):
    x = torch.randn(4, 70, 3, requires_grad=True)
    mask = mask_of(LENGTHS, 70)
    filled = torch.where(mask[..., None], x, fill)
    expected = torch.where(mask[..., None], x, 0.0)
    assert torch.equal(zero_padding(filled, mask), expected)
    grad = torch.randn(4, 70, 3)
    assert torch.equal(torch.autograd.grad(zero_padding(x, mask), x, grad)[0], grad * mask[..., None])
    whole = mask_of(torch.tensor([70] * 4), 70)
    assert zero_padding(x, whole) is x


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999999])
def test_dropout_drops_a_share_and_keeps_the_mean(share):
    """The number kept is binomial: five standard deviations of it, and what is kept is scaled exactly."""
    layer, x = Dropout(share).train(), (torch.rand(999, 1001) + 1).requires_grad_()
    torch.manual_seed(3)
    y = layer(x)
    exact = min(round(share * STEPS), STEPS - 1) / STEPS
    count, kept = x.numel(), y != 0
    assert abs(int(kept.sum()) - count * (1 - exact)) <= 5 * (count * exact * (1 - exact)) ** 0.5
    torch.testing.assert_close(y[kept], (x / (1 - exact))[kept])
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(grad, kept / (1 - exact))
    torch.manual_seed(3)
    assert torch.equal(layer(x), y) and not torch.equal(layer(x), y)


def test_dropout_draws_are_independent():
    """Neighbours, which share a 64-bit word of four draws, and the same place of the next word: no correlation."""
    kept = (Dropout(0.3).train()(torch.ones(2**20)) != 0).double() - 0.7
    for lag in (1, 2, 3, 4, 8):
        assert (kept[lag:] * kept[:-lag]).mean().abs() < 5 * 0.21 / 2**10
    places = kept.view(-1, 4).mean(dim=0).abs()
    assert (places < 5 * (0.21 / 2**18) ** 0.5).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(share):
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(share).train()(x), x * (1 - share)) and torch.equal(Dropout(share).eval()(x), x)


@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([70] * 4), torch.tensor([0] * 4)])
@pytest.mark.parametrize("shape", [(4, 70, 5), (4, 70, 3, 5)])
def test_batch_norm(lengths, shape):
    """The gradient at padded frames too, which may be asked for."""
    norm, mask = perturbed(MaskedBatchNorm(5)).double(), mask_of(lengths, 70)
    x = (3 * torch.randn(shape).double() + 10).requires_grad_()
    start, found = {key: value.clone() for key, value in norm.state_dict().items()}, []
    grad = torch.randn(shape)
    for _ in range(2):
        norm.load_state_dict(start)
        tensors = [x, norm.weight, norm.bias]
        if found:
            with plain_paths():
                found.append(gradients(lambda: norm(x, mask), tensors, grad))
        else:
            found.append(gradients(lambda: norm(x, mask), tensors, grad))
        found[-1] += [norm.running_mean.clone(), norm.running_var.clone()]
    close(*found, 1e-11)


@pytest.mark.parametrize("activation", ["swish", "glu"])
def test_batch_norm_in_the_taps(activation):
    """Out of training the norm after a depthwise convolution is part of its weights."""
    module, x = perturbed(ConvModule(6, 5, activation)).double().eval(), torch.randn(4, 70, 6).double()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    mask = mask_of(LENGTHS, 70)
    y = module.expand(x)
    y = torch.nn.functional.silu(y) if activation == "swish" else torch.nn.functional.glu(y)
    y = module.project(torch.nn.functional.silu(module.norm(module.depthwise(y, mask), mask)))
    close([module(x, mask)], [y], 1e-12)


def test_a_scale_is_folded_into_several_layers():
    scale, layers = perturbed(LearnedScale(6)).double(), [nn.Linear(6, size).double() for size in (4, 9)]
    x, grad = torch.randn(3, 70, 6).double().requires_grad_(), torch.randn(3, 70, 13)
    tensors = [x, *scale.parameters(), *(parameter for layer in layers for parameter in layer.parameters())]
    plain = gradients(lambda: torch.cat([layer(scale(x)) for layer in layers], dim=-1), tensors, grad)
    close(gradients(lambda: joined(x, tuple(layers), scale), tensors, grad), plain, 1e-12)
    close([joined(x[:1, :2], tuple(layers), scale)], [plain[0][:1, :2]], 1e-12)  # too few frames to fold for


@pytest.mark.parametrize("frames", [1, 2, 7, 33, 70])
@pytest.mark.parametrize("stride", [2, 4, 16])
@pytest.mark.parametrize("depthwise", [True, False])
def test_a_stem_in_pieces(frames, stride, depthwise):
    stem = subsample.Conv2dStem(20, 6, stride, depthwise=depthwise).double()
    x, mask = (
        torch.randn(3, frames, 20).double().requires_grad_(),
        mask_of(torch.tensor([frames, frames // 2, 0]), frames),
    )
    with plain_paths():
        grad = torch.randn(3, -(-frames // stride), 6) * stem(x, mask)[1][..., None]
        plain = gradients(lambda: stem(x, mask)[0] * stem(x, mask)[1][..., None], [x, *stem.parameters()], grad)
        out_mask = stem(x, mask)[1]
    found = gradients(lambda: stem(x, mask)[0] * out_mask[..., None], [x, *stem.parameters()], grad)
    assert torch.equal(stem(x, mask)[1], out_mask)
    close(found, plain, 1e-11)


@pytest.mark.parametrize("context", [None, (5, 3), (-1, 0), (100, 0), (0, 0)])
@pytest.mark.parametrize("kept", [0, 512])
def test_attention_in_blocks(context, kept, monkeypatch):
    """Against the pairs one by one, for an odd head width, with and without weights kept for backward."""
    monkeypatch.setattr(block_attention, "KEPT", kept)
    T, H, K = 70, 2, 7
    make = lambda *shape: torch.randn(shape).double().requires_grad_()  # noqa: E731
    q, k, value, position, u, v = (
        make(4, T, H, K),
        make(4, T, H, K),
        make(4, T, H, K),
        make(2 * T - 1, H, K),
        make(H, K),
        make(H, K),
    )
    before, after = context or (-1, -1)
    index = torch.arange(T)
    distance = index - index[:, None]  # j - i
    hidden = ((distance < -before) & (before >= 0)) | ((distance > after) & (after >= 0))

    def plain() -> torch.Tensor:
        items = []
        for item, length in enumerate(LENGTHS.tolist()):
            rows = position[T - 1 + distance[:length, :length]]  # of the distances T - 1 ... -(T - 1), i - j first
            score = torch.einsum("ihk,jhk->hij", q[item, :length] + u, k[item, :length])
            score = score + torch.einsum("ihk,ijhk->hij", q[item, :length] + v, rows)
            weight = (score / K**0.5).masked_fill(hidden[:length, :length], -torch.inf).softmax(dim=-1)
            y = torch.einsum("hij,jhk->ihk", weight, value[item, :length])
            items.append(torch.nn.functional.pad(y, (0, 0, 0, 0, 0, T - length)))
        return torch.stack(items)

    grad, tensors = torch.randn(4, T, H, K), [q, k, value, position, u, v]
    found = gradients(lambda: attend_in_blocks(*tensors, mask_of(LENGTHS, T), context), tensors, grad)
    close(found, gradients(plain, tensors, grad), 1e-11)


def test_a_limited_context_costs_what_it_sees():
    """Scores of an hour at 25 frames a second: linear in the length, and never more than a block's."""
    hour = blocks_of([90_000], 4, (128, 64))
    scores = [(block.last - block.first) * (block.right - block.left) for block in hour]
    assert max(scores) * 4 <= 2 * block_attention.SCORES
    assert sum(scores) < 2 * 90_000 * (128 + 64 + 1 + block_attention.MOST)


@pytest.mark.parametrize("part", BACKBONES + VARIANTS, ids=title)
def test_a_backbone(part):
    """Every choice of every backbone, in training, in float64: outputs and the gradients of all weights."""
    torch.manual_seed(0)
    backbone = perturbed(create_backbone(**part, in_dim=20)).double().train()
    x, mask = torch.randn(4, 70, 20).double().requires_grad_(), mask_of(LENGTHS, 70)
    tensors = [x, *backbone.parameters()]
    grad = torch.randn(backbone(x, mask)[0].shape)
    found = gradients(lambda: backbone(x, mask)[0], tensors, grad)
    with plain_paths():
        close(found, gradients(lambda: backbone(x, mask)[0], tensors, grad), 1e-7)


@pytest.mark.parametrize("part", BACKBONES, ids=title)
def test_a_backbone_in_float32(part):
    torch.manual_seed(0)
    backbone = create_backbone(**part, in_dim=20).eval()
    x, mask = torch.randn(4, 70, 20), mask_of(LENGTHS, 70)
    with torch.no_grad():
        found = backbone(x, mask)[0]
        with plain_paths():
            close([found], [backbone(x, mask)[0]], 1e-5)
