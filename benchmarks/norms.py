"""BatchNorm over real frames, and LayerNorm, beside torch's own."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Case
from benchmarks.passes import Runner, drawn, passes
from benchmarks.setting import Setting
from seqformer.nn.norm import make_norm


def masked(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x, x.new_ones(x.shape[:2], dtype=torch.bool))


def transposed(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.transpose(1, 2)).transpose(1, 2)


def cases(setting: Setting) -> Iterator[list[Case]]:
    batch, frames, dim = (2, 20, 16) if setting.quick else (8, 250, 392)
    pairs = {
        "BatchNorm": {
            "seqformer": Runner(make_norm("batch", dim), masked),
            "torch BatchNorm1d": Runner(nn.BatchNorm1d(dim), transposed, note="counts padding"),
        },
        "LayerNorm": {
            "seqformer": Runner(make_norm("layer", dim), masked),
            "torch LayerNorm": Runner(nn.LayerNorm(dim), lambda it, x: it(x)),
        },
    }
    x = drawn(batch, frames, dim)
    for name, runners in pairs.items():
        for kind, moved in (("forward", 2), ("training", 6)):
            what = f"{name} {batch} x {frames} x {dim}"
            yield passes(kind, what, runners, x, setting, bytes=moved * x.nbytes, inside=True)
