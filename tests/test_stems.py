"""Stems that no published weights check: each equals its convolutions written out plainly."""

import pytest
import torch
from test_parts import frames, perturbed
from torch.nn import functional as F

from seqformer.nn.mask import mask_of
from seqformer.nn.subsample import make_stem

torch.set_num_threads(1)


@torch.no_grad()
@pytest.mark.parametrize(("length", "stride"), [(12, 3), (13, 3), (14, 3), (9, 2), (10, 4), (1, 3), (11, 5)])
def test_vgg(length, stride):
    """reference/backbones.md, section 5: 32, pool 2 over features, 64, 64, 32 of stride (s, 1), linear without bias."""
    stem, x = perturbed(make_stem("vgg", 10, 4, stride)), frames(1, length, 10)
    z = F.max_pool2d(F.silu(F.conv2d(x[:, None], stem.convs[0].weight, stem.convs[0].bias, padding=1)), (1, 2))
    for conv in stem.convs[1:]:
        z = F.silu(F.conv2d(z, conv.weight, conv.bias, padding=1))
    z = F.pad(z, (1, 1, 0, stride + 3))  # features on both sides; in time only after the end, so that j sees from j * s
    z = F.silu(F.conv2d(z, stem.last.weight, stem.last.bias, stride=(stride, 1)))[:, :, : -(-length // stride)]
    assert z.shape[1:] == (32, -(-length // stride), 5) and stem.linear.bias is None
    expected = z.permute(0, 2, 3, 1).flatten(2) @ stem.linear.weight.T  # features before channels
    y, mask = stem(x, torch.ones(1, length, dtype=torch.bool))
    torch.testing.assert_close(y, expected)
    assert mask.shape == y.shape[:2] and mask.all()


@torch.no_grad()
@pytest.mark.parametrize("stride", [2, 16])
def test_signal(stride):
    stem, x = perturbed(make_stem("signal", 3, 4, stride, channels=6)), frames(2, 35, 3)
    lengths = torch.tensor([35, 20])
    y, mask = stem(x, mask_of(lengths, 35))
    assert [conv.out_channels for conv in stem.convs] == [6] * (len(stem.convs) - 1) + [4]
    for item, length in enumerate(lengths.tolist()):
        z = x[item : item + 1, :length].mT
        for conv, norm in zip(stem.convs, stem.norms, strict=True):
            z = F.conv1d(z, conv.weight, conv.bias, stride=2, padding=2).mT
            z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            z = F.silu(z).mT
        torch.testing.assert_close(y[item, : z.shape[2]], z[0].mT)
        assert mask[item].sum() == z.shape[2] == -(-length // stride)


@torch.no_grad()
def test_the_inner_width_of_a_stem():
    stem = make_stem("depthwise_conv2d", 80, 16, 8, channels=6)
    assert stem.first.out_channels == 6 and stem.linear.in_features == 6 * 10 and stem.linear.out_features == 16
    assert [conv.groups for conv in stem.convs] == [6, 6]
    full = make_stem("conv2d", 80, 16, 8, channels=6)
    assert [conv.groups for conv in full.convs] == [1, 1] and full.convs[0].in_channels == 6
