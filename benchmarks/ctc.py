"""The CTC head's loss, from frames to the gradient of its weights, beside torch's parts put together by hand."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Case
from benchmarks.passes import drawn
from benchmarks.setting import Setting
from seqformer.heads.ctc import CTC


def by_hand(linear: nn.Linear, x: Tensor, frames: Tensor, targets: Tensor, units: Tensor) -> Tensor:
    log_probs = linear(x).float().log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, frames, units, zero_infinity=True)


def cases(setting: Setting) -> Iterator[list[Case]]:
    shapes = [(2, 12, 3, 5)] if setting.quick else [(8, 250, 100, 32), (32, 400, 60, 1024)]
    for batch, frames, units, vocab in shapes:
        dim, device = 196, setting.device
        x = drawn(batch, frames, dim).to(device).requires_grad_()
        mask = torch.ones(batch, frames, dtype=torch.bool, device=device)
        targets = torch.randint(1, vocab, (batch, units), generator=torch.Generator().manual_seed(0)).to(device)
        sizes = [torch.full((batch,), size, device=device) for size in (frames, units)]
        head, linear = CTC(dim, vocab).to(device), nn.Linear(dim, vocab).to(device)

        def ours(head=head, x=x, mask=mask, targets=targets) -> None:
            torch.autograd.grad(head.loss(x, mask, targets), [x, *head.parameters()])

        def usual(linear=linear, x=x, targets=targets, sizes=sizes) -> None:
            torch.autograd.grad(by_hand(linear, x, sizes[0], targets, sizes[1]), [x, *linear.parameters()])

        flops = 6.0 * batch * frames * dim * vocab
        yield [
            Case(
                f"forward and backward, {batch} x {frames} frames, {units} of {vocab} units",
                who,
                call,
                batch,
                "utterances/s",
                flops,
                peak=True,
            )
            for who, call in (("seqformer", ours), ("torch ctc_loss", usual))
        ]
