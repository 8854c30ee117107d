"""Encoders: forward in eval mode, forward and backward in train mode, over batch and length, and the memory of both."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encoder_peers import PEERS, Size, padding_error
from benchmarks.measure import Case
from benchmarks.setting import Setting
from seqformer import create_backbone
from seqformer.nn.attention import Attention
from seqformer.nn.conv import DepthwiseConv

IN_DIM = 80


class Ours(nn.Module):
    """x (B, T, F), lengths (B,) -> (B, T', D), as a peer is called."""

    def __init__(self, name: str, **changes):
        super().__init__()
        self.backbone = create_backbone(name, in_dim=IN_DIM, **changes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.backbone(x, torch.arange(x.shape[1], device=x.device) < lengths[:, None])[0]


def size_of(backbone: nn.Module) -> Size:
    """What peers have to match, read off a backbone; one that never halves its rate leaves that to the middle."""
    heads = next(part.heads for part in backbone.modules() if isinstance(part, Attention))
    kernel = max(part.kernel for part in backbone.modules() if isinstance(part, DepthwiseConv))
    depth = len(backbone.blocks)
    return Size(IN_DIM, backbone.dim, depth, heads, kernel, (backbone.reduce_at or [depth // 2])[0])


def cases(setting: Setting) -> Iterator[list[Case]]:
    for name in setting.backbones:
        torch.manual_seed(0)
        ours = Ours(name, **(dict(dim=16, depth=3, reduce_at=1) if setting.quick else {}))
        peers = setting.built(PEERS, size_of(ours.backbone))
        models = {f"seqformer {name}": ours, **peers}
        models = {who: model.to(setting.device) for who, model in models.items()}
        errors = {who: padding_error(model.eval(), IN_DIM, setting.device) for who, model in models.items()}
        for kind, shapes in (("forward", setting.shapes), ("training", setting.train_shapes)):
            for batch, frames in shapes:
                yield [
                    encoder_case(model, who, f"{kind} {batch} x {frames}", kind, batch, frames, setting, errors[who])
                    for who, model in models.items()
                ]


def encoder_case(
    model: nn.Module, who: str, what: str, kind: str, batch: int, frames: int, setting: Setting, pad_err: float
) -> Case:
    x = torch.randn(batch, frames, IN_DIM, generator=torch.Generator().manual_seed(0)).to(setting.device)
    lengths = torch.full((batch,), frames, device=setting.device)

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        with setting.autocast():
            model(x, lengths)

    def training() -> None:
        model.train()
        with setting.autocast():
            y = model(x, lengths)
        y.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return Case(
        what,
        who,
        forward if kind == "forward" else training,
        count=batch * frames / 100,
        unit="x real time",
        flops=(1 if kind == "forward" else 3) * count_flops(forward),
        pad_err=pad_err,
        peak=True,
    )


def count_flops(call: Callable[[], object]) -> float:
    """Floating point operations of products and convolutions, 2 for a multiplication and addition."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        call()
    return float(counter.get_total_flops())
