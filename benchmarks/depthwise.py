"""Depthwise convolution over time, beside conv1d, which is how every peer writes it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Case
from benchmarks.passes import Runner, drawn, passes
from benchmarks.setting import Setting
from seqformer.nn.conv import DepthwiseConv


def masked(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x, x.new_ones(x.shape[:2], dtype=torch.bool))


def usual(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x.transpose(1, 2)).transpose(1, 2)


def usual_masked(conv: nn.Module, x: Tensor) -> Tensor:
    padding = x.new_zeros(x.shape[:2], dtype=torch.bool)
    return usual(conv, x.masked_fill(padding[..., None], 0))


def cases(setting: Setting) -> Iterator[list[Case]]:
    for batch, frames, dim, kernel in [(2, 20, 16, 7)] if setting.quick else [(8, 250, 392, 31), (1, 1500, 392, 31)]:
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        runners = {
            "seqformer": Runner(DepthwiseConv(dim, kernel), masked),
            "torch conv1d, masked": Runner(conv, usual_masked),
            "torch conv1d": Runner(conv, usual, note="no mask"),
        }
        x = drawn(batch, frames, dim)
        for kind, moved in (("forward", 2), ("training", 6)):  # at least read and written, and so for three gradients
            what = f"{batch} x {frames} x {dim}, kernel {kernel}"
            yield passes(kind, what, runners, x, setting, bytes=moved * x.nbytes, inside=True)
