"""The transducer's loss on the joint network's logits, forward and backward, beside whatever else computes it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Case
from benchmarks.passes import drawn
from benchmarks.setting import Setting
from seqformer.nn.transducer_loss import BLANK, transducer_loss

# loss(logits (B, T, U + 1, V), targets (B, U), frames (B,), units (B,)) -> the sum over items


def ours(logits: Tensor, targets: Tensor, frames: Tensor, units: Tensor) -> Tensor:
    blank, label = entries(logits, targets)
    return transducer_loss(blank, label, frames, units).sum()


def entries(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T, U + 1) of a blank and of the next unit, the last of which means nothing."""
    following = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    total = logits.logsumexp(dim=-1)
    return logits[..., BLANK] - total, logits.gather(-1, following)[..., 0] - total


def frame_by_frame() -> Callable:
    """The textbook's loop over frames in torch's operators, units of a frame at once by a cumulative sum."""

    def loss(logits: Tensor, targets: Tensor, frames: Tensor, units: Tensor) -> Tensor:
        blank, label = entries(logits, targets)
        said = torch.nn.functional.pad(label[..., :-1].cumsum(dim=-1), (1, 0))  # (B, T, W)
        alpha = said[:, 0]
        for frame in range(1, logits.shape[1]):
            come = alpha + blank[:, frame - 1] - said[:, frame]
            alpha = come.logcumsumexp(dim=-1) + said[:, frame]
        return -(alpha[:, -1] + blank[:, -1, -1]).sum()

    return loss


def torchaudio() -> Callable:
    import torchaudio

    if not hasattr(torch.ops.torchaudio, "rnnt_loss_forward"):
        raise ImportError("torchaudio is here without its compiled library")

    def loss(logits: Tensor, targets: Tensor, frames: Tensor, units: Tensor) -> Tensor:
        given = [one.int() for one in (targets, frames, units)]
        return torchaudio.functional.rnnt_loss(logits, *given, blank=BLANK, reduction="sum")

    return loss


def speechbrain() -> Callable:
    from speechbrain.integrations.numba.transducer_loss import TransducerLoss  # for GPUs alone

    return TransducerLoss(blank=BLANK, reduction="sum")


PEERS = {
    "torch, frame by frame": frame_by_frame,
    "torchaudio rnnt_loss": torchaudio,
    "speechbrain transducer": speechbrain,
}


def cases(setting: Setting) -> Iterator[list[Case]]:
    batch, frames, units, vocab = (2, 12, 3, 5) if setting.quick else (8, 150, 40, 128)
    device = setting.device
    logits = drawn(batch, frames, units + 1, vocab).to(device).requires_grad_()
    targets = torch.randint(1, vocab, (batch, units), generator=torch.Generator().manual_seed(0)).to(device)
    sizes = [torch.full((batch,), size, device=device) for size in (frames, units)]

    def step(loss: Callable) -> None:
        torch.autograd.grad(loss(logits, targets, *sizes), logits)

    what = f"forward and backward, {batch} x {frames} frames, {units} of {vocab} units"
    yield [
        Case(what, who, lambda loss=loss: step(loss), batch, "utterances/s", peak=True)
        for who, loss in ({"seqformer": ours} | setting.built(PEERS)).items()
    ]
