"""A whole training step of CTC: samples, log-mel, encoder, loss, backward, clipping and AdamW, on lengths as they come.

Peers are given our log-mel features, which cost a hundredth of the step, torch's CTC loss and torch's AdamW.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.encoders import IN_DIM, encoders
from benchmarks.measure import Case
from benchmarks.passes import count_flops, drawn
from benchmarks.setting import Setting
from seqformer.config import Optim
from seqformer.frontends.audio import LogMel
from seqformer.heads.ctc import CTC
from seqformer.nn.mask import lengths_of, mask_of
from seqformer.train.optim import make_optimizer

RATE, VOCAB = 16_000, 128
UNITS_PER_SECOND = 4


class Recognizer(nn.Module):
    """Samples (B, N), lengths (B,), targets (B, U) -> the loss, of any encoder."""

    def __init__(self, encoder: nn.Module, dim: int):
        super().__init__()
        self.frontend, self.encoder, self.linear = LogMel(mels=IN_DIM), encoder, nn.Linear(dim, VOCAB)

    def forward(self, x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        features, mask = self.frontend({"x": x}, mask_of(lengths, x.shape[1]))[:2]
        y = self.encoder(features, lengths_of(mask))
        log_probs = self.linear(y).float().log_softmax(dim=-1).transpose(0, 1)
        frames = (lengths_of(mask) // 4).clamp(max=len(log_probs))
        return F.ctc_loss(log_probs, targets.clamp(min=0), frames, (targets >= 0).sum(dim=1), zero_infinity=True)


class Ours(Recognizer):
    """The same by our head."""

    def __init__(self, encoder: nn.Module, dim: int):
        super().__init__(encoder, dim)
        self.linear = CTC(dim, VOCAB)

    def forward(self, x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        features, mask = self.frontend({"x": x}, mask_of(lengths, x.shape[1]))[:2]
        y, y_mask = self.encoder.backbone(features, mask)
        return self.linear.loss(y, y_mask, targets)


def cases(setting: Setting) -> Iterator[list[Case]]:
    items, longest = (2, 2) if setting.quick else (8, 12)
    seconds = torch.linspace(longest / 2, longest, items)
    lengths = (RATE * seconds).long().to(setting.device)
    x = 0.1 * drawn(items, int(lengths.max())).to(setting.device)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, VOCAB, (items, UNITS_PER_SECOND * longest), generator=generator)
    real = torch.arange(targets.shape[1]) < (UNITS_PER_SECOND * seconds).long()[:, None]
    targets = targets.masked_fill(~real, -1).to(setting.device)
    for name in setting.backbones:
        made = encoders(name, setting)
        dim = next(iter(made.values())).backbone.dim
        models = {
            who: (Recognizer if index else Ours)(encoder, dim) for index, (who, encoder) in enumerate(made.items())
        }
        what = f"{items} recordings, {float(seconds.sum()):.0f} s in all"
        yield [
            Case(
                what,
                who,
                training_step(model.to(setting.device), (x, lengths, targets), setting, ours=not index),
                float(seconds.sum()),
                "x real time",
                3 * flops_of(model, (x, lengths, targets)),
                peak=True,
            )
            for index, (who, model) in enumerate(models.items())
        ]


def training_step(model: nn.Module, given: tuple[Tensor, ...], setting: Setting, ours: bool) -> Callable[[], None]:
    optimizer = make_optimizer(model, Optim()) if ours else torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        with setting.autocast():
            loss = model(*given)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def flops_of(model: nn.Module, given: tuple[Tensor, ...]) -> float:
    """Of a forward pass, padding counted."""
    return count_flops(lambda: model(*given))
