"""Encoders, over batch and length."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.encoder_peers import PEERS, Size
from benchmarks.measure import Case
from benchmarks.passes import Runner, drawn, padding_errors, passes, real
from benchmarks.setting import Setting
from seqformer import InputError, create_backbone
from seqformer.nn.attention import Attention
from seqformer.nn.conv import DepthwiseConv

IN_DIM = 80
TINY = {"dim": 16, "depth": 3, "reduce_at": 1}


class Ours(nn.Module):
    """x (B, T, F), lengths (B,) -> (B, T', D), as a peer is called."""

    def __init__(self, name: str, **changes):
        super().__init__()
        self.backbone = create_backbone(name, in_dim=IN_DIM, **changes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.backbone(x, real(x, lengths))[0]


def encoders(name: str, setting: Setting) -> dict[str, nn.Module]:
    """Ours, and every peer that can be had at its size; all called as model(x (B, T, F), lengths (B,))."""
    torch.manual_seed(0)
    ours = Ours(name, **(TINY if setting.quick else {}))
    models = {f"seqformer {name}": ours} | setting.built(PEERS, size_of(ours.backbone))
    return {who: model.to(setting.device) for who, model in models.items()}


def size_of(backbone: nn.Module) -> Size:
    """What peers have to match, read off a backbone; one that never halves its rate leaves that to the middle."""
    heads = next((part.heads for part in backbone.modules() if isinstance(part, Attention)), None)
    if heads is None or not hasattr(backbone, "blocks"):
        raise InputError(f"bench compares Squeezeformers and Conformers, not a {type(backbone).__name__}")
    kernel = max(part.kernel for part in backbone.modules() if isinstance(part, DepthwiseConv))
    depth = len(backbone.blocks)
    return Size(IN_DIM, backbone.dim, depth, heads, kernel, (backbone.reduce_at or [depth // 2])[0])


def cases(setting: Setting) -> Iterator[list[Case]]:
    for name in setting.backbones:
        models = encoders(name, setting)
        errors = padding_errors({who: model.eval() for who, model in models.items()}, IN_DIM, setting)
        for kind, shapes in (("forward", setting.shapes), ("training", setting.train_shapes)):
            for batch, frames in shapes:
                lengths = torch.full((batch,), frames, device=setting.device)
                runners = {
                    who: Runner(models[who], lambda it, x, lengths=lengths: it(x, lengths), error)
                    for who, error in errors.items()
                }
                rate = {"count": batch * frames / 100, "unit": "x real time"}
                yield passes(kind, f"{batch} x {frames}", runners, drawn(batch, frames, IN_DIM), setting, **rate)
