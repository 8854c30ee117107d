"""How an encoder's cost grows with the length of a recording: attention over all of it, and over a limited context."""

from collections.abc import Iterator

import torch

from benchmarks.measure import Case
from benchmarks.setting import Setting
from seqformer import create_backbone

NAME, CONTEXT = "squeezeformer_xs", (128, 128)  # frames at the block's rate: 5 s on either side, then 10 s
HOP = 100  # frames a second
FULL_S = 600  # the longest with full attention, whose cost grows with the square


def cases(setting: Setting) -> Iterator[list[Case]]:
    torch.manual_seed(0)
    known = {
        "seqformer, all frames": create_backbone(NAME, in_dim=80).eval().to(setting.device),
        f"seqformer, {CONTEXT[0]} + {CONTEXT[1]} frames": create_backbone(NAME, in_dim=80, context=CONTEXT)
        .eval()
        .to(setting.device),
    }
    for seconds in (1, 2) if setting.quick else (10, 60, 600, 3600):
        x = torch.randn(1, seconds * HOP, 80, device=setting.device)
        mask = torch.ones(1, seconds * HOP, dtype=torch.bool, device=setting.device)
        parts = {who: one for who, one in known.items() if seconds <= FULL_S or not who.endswith("all frames")}
        what = f"{NAME}, forward, {seconds} s"
        yield [Case(what, who, run(one, x, mask), seconds, "x real time", peak=True) for who, one in parts.items()]


def run(backbone: torch.nn.Module, x: torch.Tensor, mask: torch.Tensor):
    """A call without gradients."""

    @torch.no_grad()
    def call() -> None:
        backbone(x, mask)

    return call
