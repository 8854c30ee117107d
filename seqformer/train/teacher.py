"""Distillation (Hinton et al. 2015): a head learns what a trained model says, beside the targets."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqformer.batch import Batch
from seqformer.checkpoint import FILES, verify
from seqformer.config import Run
from seqformer.data.targets import Targets, Values
from seqformer.errors import InputError, nearest
from seqformer.model import SequenceModel, head_parts
from seqformer.predict import load_fold, main_head
from seqformer.train.stages import EarlierFold, require_same_outputs


@dataclass(frozen=True)
class Teacher:
    """A frozen model, and how much its answers count; ``head`` is the student's, ``theirs`` the teacher's.

    ``values``: the head's outputs are numbers, not the logits of classes or units. ``digest`` is of the weights.
    """

    model: SequenceModel
    head: str
    theirs: str
    weight: float
    temperature: float
    values: bool
    digest: str

    def loss(self, found: dict, batch: Batch) -> Tensor:
        """(1 - weight) * the model's own loss + weight * distance to the teacher, which sees the same augmented inputs.

        ``found`` is what the student's forward gave when asked for the logits of ``head``. Distance, a mean over items
        or real frames with their item's weight, scored or not: temperature^2 KL(teacher || student) of the softened
        classes, or the squared error of values. Raises InputError where the two differ in frames.
        """
        with torch.no_grad():
            wanted = self.model(batch.inputs, batch.mask)[self.theirs].float()
        logits, mask = found["logits"]
        if logits.shape != wanted.shape:
            raise InputError(f"teacher: its logits are {tuple(wanted.shape)}, the student's {tuple(logits.shape)}")
        if logits.dim() == 2:  # one answer for an item
            logits, wanted, mask = logits[:, None], wanted[:, None], mask.new_ones(len(mask), 1)
        if logits.dim() != 3 or logits.shape[:2] != mask.shape:
            raise InputError(f"teacher: head {self.head!r} answers neither per item nor per frame; choose another head")
        gap = self._distance(logits.float(), wanted, mask)
        share = mask * batch.weight.float()[:, None]
        taught = (gap * share).sum() / share.sum().clamp(min=1e-8)
        return (1 - self.weight) * found["loss"] + self.weight * taught

    def _distance(self, logits: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """(B, T, V) twice, mask (B, T) -> (B, T); padded frames are made alike first, so that none has a gradient."""
        ours, theirs = (tensor.masked_fill(~mask[..., None], 0) for tensor in (logits, wanted))
        if self.values:
            return (ours - theirs).square().mean(dim=-1)
        ours, theirs = ((tensor / self.temperature).log_softmax(dim=-1) for tensor in (ours, theirs))
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)


def load_teacher(config: Run, earlier: EarlierFold, student: SequenceModel, targets: Targets) -> Teacher:
    """The earlier fold as a teacher, on the CPU, in eval mode.

    Raises InputError on a head that is not there, outputs that mean something else, or another sample rate.
    """
    given = config.teacher
    for parts, place in ((config.head, "the config"), (earlier.config.head, earlier.folder)):
        if given.head is not None and given.head not in head_parts(parts):
            raise InputError(f"teacher.head: {place} has no {given.head!r}; {nearest(given.head, head_parts(parts))}")
    head, theirs = (given.head or main_head(run.head)[0] for run in (config, earlier.config))
    if not getattr(student.heads[head], "answers", True):
        raise InputError(f"teacher: head {head!r} answers neither per item nor per frame; choose another head")
    encoder = targets.encoders[student.heads[head].target]
    require_same_outputs(earlier, theirs, encoder, head)
    model, _ = load_fold(earlier.folder, earlier.config, torch.device("cpu"))
    rates = [getattr(part.frontend, "rate", None) for part in (model, student)]
    if rates[0] != rates[1]:
        raise InputError(f"teacher: {earlier.folder} reads audio at {rates[0]} Hz, the student at {rates[1]} Hz")
    values = isinstance(encoder, Values) and not encoder.whole
    digest = verify(earlier.checkpoint)["files"][FILES[0]]
    return Teacher(model.requires_grad_(False), head, theirs, given.weight, given.temperature, values, digest)
