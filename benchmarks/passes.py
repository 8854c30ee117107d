"""Cases of modules: a forward pass in eval mode, or forward and backward in train mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Case
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Runner:
    """A module and how it is called on what all are given; ``pad_err`` is how far padding changes its result."""

    module: nn.Module
    run: Callable[[nn.Module, Tensor], Tensor]
    pad_err: float | None = None
    note: str = ""


def passes(kind: str, what: str, runners: Mapping[str, Runner], x: Tensor, setting: Setting, **also) -> list[Case]:
    """``kind`` is forward or training. The rest goes to Case, but for ``inside``: the input wants a gradient too."""
    return [one_case(kind, f"{kind}, {what}", who, runner, x, setting, **also) for who, runner in runners.items()]


def one_case(kind: str, what: str, who: str, runner: Runner, x: Tensor, setting: Setting, **also) -> Case:
    module, x = runner.module.to(setting.device), x.to(setting.device)

    @torch.no_grad()
    def forward() -> Tensor:
        module.eval()
        with setting.autocast():
            return runner.run(module, x)

    inner = x.clone().requires_grad_() if also.pop("inside", False) else x

    def training() -> None:
        module.train()
        with setting.autocast():
            y = runner.run(module, inner)
        y.float().square().mean().backward()
        module.zero_grad(set_to_none=True)
        inner.grad = None

    call, factor = (forward, 1) if kind == "forward" else (training, 3)
    return Case(
        what,
        who,
        call,
        flops=factor * count_flops(forward),
        pad_err=runner.pad_err,
        peak=True,
        note=runner.note,
        **also,
    )


def count_flops(call: Callable[[], object]) -> float:
    """Floating point operations of products and convolutions, 2 for a multiplication and addition."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        call()
    return float(counter.get_total_flops())


def padding_errors(runs: Mapping[str, Callable[[Tensor, Tensor], Tensor]], dim: int, setting: Setting) -> dict:
    """``padding_error`` of ours, the first, and of every peer that runs at all."""
    found = {}
    for who, run in runs.items():
        measured = partial(padding_error, run, dim, setting.device)
        found[who] = setting.tried(who, measured) if found else measured()
    return {who: error for who, error in found.items() if error is not None}


@torch.no_grad()
def padding_error(run: Callable[[Tensor, Tensor], Tensor], dim: int, device: str, frames: int = 200) -> float:
    """Relative change of an item's frames when it is batched with one twice as long, padded with zeros.

    ``run``: x (B, T, dim), lengths (B,) -> frames (B, T', any).
    """
    x = torch.randn(2, 2 * frames, dim, generator=torch.Generator().manual_seed(1)).to(device)
    x[0, frames:] = 0
    lengths = torch.tensor([frames, 2 * frames], device=device)
    alone, together = run(x[:1, :frames], lengths[:1])[0], run(x, lengths)[0]
    return float((together[: len(alone)] - alone).norm() / alone.norm())


def real(x: Tensor, lengths: Tensor) -> Tensor:
    """mask (B, T), True = real frame."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
