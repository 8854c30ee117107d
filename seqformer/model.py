"""SequenceModel: frontend -> backbone -> heads."""

from collections.abc import Callable, Collection
from fnmatch import fnmatch
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

import seqformer.backbones
import seqformer.frontends
import seqformer.heads  # noqa: F401  importing these registers their names
from seqformer.errors import InputError
from seqformer.registry import check_type, create, lookup, named, names

OF_THE_MODEL = ("weight", "at", "train_only")  # keywords of a head's entry that are not the head's own

TRANSCRIBERS = "that takes audio features, a head ctc or transducer, and a tokenizer"


class SequenceModel(nn.Module):
    """``model(inputs, mask)`` -> {head: logits}; with ``targets`` and ``weight`` -> {"loss": ..., head: its loss}.

    ``logits`` names a head whose logits and mask are wanted beside the losses, as ``found["logits"]``.
    Training goes through ``forward`` too, so that data parallel wrappers and the compiler see it. ``weights`` are the
    shares of the heads in the total loss; ``blocks`` says which block a head reads, where that is not the last;
    heads in ``train_only`` have a loss in ``forward`` and nothing else. A head with ``weights`` is trained with the
    batch's weight times those of that column, where NaN is 0.
    """

    def __init__(
        self,
        frontend: nn.Module,
        backbone: nn.Module,
        heads: dict[str, nn.Module],
        weights: dict[str, float],
        blocks: dict[str, int] | None = None,
        train_only: Collection[str] = (),
    ):
        super().__init__()
        self.frontend, self.backbone, self.heads = frontend, backbone, nn.ModuleDict(heads)
        self.weights, self.blocks, self.train_only = weights, blocks or {}, frozenset(train_only)
        self.parts: dict[str, Any] | None = None  # what create_model was given, to be made again from
        self.tokenizer = None  # of a checkpoint with one: units -> text

    def forward(
        self,
        inputs: dict[str, Tensor],
        mask: Tensor,
        targets: dict[str, Tensor] | None = None,
        weight: Tensor | None = None,
        logits: str | None = None,
    ) -> dict[str, Tensor]:
        features = self.frontend(inputs, mask)
        keep = self._wanted()
        read = self._read(self.backbone(features.x, features.mask, features.bias, **keep), **keep)
        if targets is None:
            return {name: head(*read[name]) for name, head in self._lasting()}
        targets = targets | (features.targets or {})
        losses = {name: head_loss(head, *read[name], targets, weight) for name, head in self.heads.items()}
        found = {"loss": sum(self.weights[name] * loss for name, loss in losses.items())} | losses
        for name, head in self.heads.items():
            if hasattr(head, "infeasible"):
                found["infeasible"] = head.infeasible(read[name][1], targets[head.target]).sum()
        if logits is not None:
            found["logits"] = self.heads[logits](*read[logits]), read[logits][1]
        return found

    def _lasting(self) -> list[tuple[str, nn.Module]]:
        """Names and heads that are there after training too."""
        return [(name, head) for name, head in self.heads.items() if name not in self.train_only]

    def _wanted(self) -> dict[str, dict]:
        """The backbone's keyword for blocks that heads read, and nothing where all read the last."""
        return {"keep": dict.fromkeys(self.blocks.values())} if self.blocks else {}

    def _read(self, last: tuple[Tensor, Tensor], keep: dict | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Frames and their mask for each head."""
        return {name: keep[self.blocks[name]] if name in self.blocks else last for name in self.heads}

    def loss(self, batch) -> Tensor:
        """The total loss of a Batch, float32."""
        return self(batch.inputs, batch.mask, batch.targets, batch.weight)["loss"]

    def predict(self, batch) -> dict[str, list]:
        """{head: one prediction per item} of a Batch."""
        return self.evaluate(batch)[0]

    @torch.no_grad()
    def evaluate(self, batch) -> tuple[dict[str, list], Tensor | None]:
        """Predictions as ``predict`` gives them and, where the batch has targets, the total loss, in one pass."""
        read, made = self._read_batch(batch)
        targets = batch.targets | made
        found = {name: head.predict(*read[name], *_given(head, targets)) for name, head in self._lasting()}
        if not batch.targets:
            return found, None
        losses = (
            self.weights[name] * head_loss(head, *read[name], targets, batch.weight) for name, head in self._lasting()
        )
        return found, sum(losses)

    @torch.no_grad()
    def log_probs(self, batch, name: str) -> list[Tensor]:
        """log p(unit) in the frames of each item (T, vocab), of the head ``name``. Raises InputError if it has none."""
        self.check_log_probs(name)
        return self.heads[name].log_probs(*self._read_batch(batch)[0][name])

    def check_log_probs(self, name: str) -> None:
        """Raise InputError unless the head ``name`` gives log-probabilities of units in frames."""
        if not hasattr(self.heads[name], "log_probs"):
            raise InputError(f"head {name} gives no probabilities of units in frames, as ctc does")

    @torch.no_grad()
    def outputs(self, batch, name: str) -> list[Tensor]:
        """What the ``forward`` of the head ``name`` gives of each item's frames (T, K): what its ``reader`` takes."""
        x, mask = self._read_batch(batch)[0][name]
        return [item[keep] for item, keep in zip(self.heads[name](x, mask), mask, strict=True)]

    @property
    def text_head(self) -> str | None:
        """The first head that reads recordings of any length, frame by frame: ctc or transducer."""
        return next((name for name, head in self.heads.items() if hasattr(head, "reader")), None)

    @torch.no_grad()
    def heard(self, batch, name: str) -> list[Tensor]:
        """Of each item what a search over the texts of head ``name`` takes: ``log_probs``, or frames (T, joint)."""
        return self.log_probs(batch, name) if self.search(name) is None else self.outputs(batch, name)

    def search(self, name: str):
        """The search of head ``name`` over its texts in what ``heard`` gives; None where that is ``log_probs``."""
        return getattr(self.heads[name], "search_frames", None)

    def _read_batch(self, batch) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Frames and their mask for each head, of a Batch, and targets that the frontend made.

        ``forward`` does the same a call nearer to attention.
        """
        features = self.frontend(batch.inputs, batch.mask)
        keep = self._wanted()
        read = self._read(self.backbone(features.x, features.mask, features.bias, **keep), **keep)
        return read, features.targets or {}


def _given(head: nn.Module, targets: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What a head's ``predict`` is asked with beside frames: its targets, if it answers how likely they are."""
    return (targets[head.target],) if getattr(head, "given_targets", False) and head.target in targets else ()


def head_loss(
    head: nn.Module, x: Tensor, mask: Tensor, targets: dict[str, Tensor], weight: Tensor | None = None
) -> Tensor:
    """A head's loss, with the batch's weight (B,) times the weights of the head's own column, if it names one."""
    column = getattr(head, "weights", None)
    if column is not None:
        own = targets[column].float().nan_to_num(nan=0.0).clamp(min=0)  # padding is NaN, of whole numbers -1
        weight = own if weight is None else own * weight.float().reshape(-1, *[1] * (own.dim() - 1))
    return head.loss(x, mask, targets[head.target], weight)


def create_model(frontend: dict[str, Any], backbone: dict[str, Any], head: dict[str, Any]) -> SequenceModel:
    """Build a model of registered parts, each ``{"name": ..., keyword: value}``.

    ``head`` is one such part or several, {their name: part}, each with an optional ``weight`` in the loss and ``at``,
    the number of the block that it reads in place of the last (an auxiliary, or intermediate, head), and
    ``train_only``: true, where it shall shape the rest in training and predict nothing. Widths are passed along: the
    frontend's to the backbone, the backbone's to the heads. Raises InputError on an unknown name or keyword or a value
    of the wrong type, and when the first head, the one that is scored, is only for training.
    """
    front = build_part("frontend", frontend)
    body = build_part("backbone", backbone, in_dim=front.dim)
    model = SequenceModel(front, body, *_build_heads(head, body), _train_only(head))
    if not hasattr(body, "part"):  # that of a checkpoint's has its own architecture, not the path it was read from
        body.part = backbone | {"in_dim": front.dim}
    own = {key: value for key, value in body.part.items() if key != "in_dim"}
    model.parts = {"frontend": frontend, "backbone": own, "head": head}
    return model


def _build_heads(
    head: dict[str, Any], body: nn.Module
) -> tuple[dict[str, nn.Module], dict[str, float], dict[str, int]]:
    """Heads, their shares of the loss, and the blocks that those with an ``at`` read."""
    heads, weights, blocks = {}, {}, {}
    for key, part in head_parts(head).items():
        keywords = {word: value for word, value in part.items() if word not in OF_THE_MODEL}
        weights[key], width = float(part.get("weight", 1.0)), body.dim
        if hasattr(nn.ModuleDict, key):
            raise InputError(f"head {key}: the name is taken by torch; choose another")
        if part.get("at") is not None:
            number, known = check_type(part["at"], int, f"head {key}.at"), len(getattr(body, "blocks", ()))
            if not 0 <= number < known or "keep" not in signature(body.forward).parameters:
                raise InputError(f"head {key}: at is {number}; the backbone has {known} blocks to read")
            blocks[key], width = number, getattr(body, "dims", [body.dim] * known)[number]
        heads[key] = build_part("head", keywords, dim=width)
    return heads, weights, blocks


def _train_only(head: dict[str, Any]) -> list[str]:
    """Names of the heads that are for training only."""
    parts = head_parts(head)
    only = [
        key for key, part in parts.items() if check_type(part.get("train_only", False), bool, f"head {key}.train_only")
    ]
    if next(iter(parts)) in only:
        raise InputError(f"head {only[0]}: train_only is true of the head that is scored; give another first")
    return only


def head_parts(head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One head ``{"name": ...}`` becomes {its name: itself}; several stay as they are."""
    return {head["name"]: head} if isinstance(head.get("name"), str) else head


def create_backbone(name: str, **arguments: Any) -> nn.Module:
    """A backbone by its registered name, any constructor argument overridden by keyword."""
    return build_part("backbone", {"name": name} | arguments)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones that match an fnmatch pattern and need no argument but in_dim: the published sizes.

    Beside them a family by its own name (``conformer``) takes any size, and ``pretrained`` a checkpoint.
    """
    return [name for name in names("backbone") if fnmatch(name, pattern) and _is_ready(lookup("backbone", name))]


def _is_ready(target: Callable) -> bool:
    given = [parameter for parameter in signature(target).parameters.values() if parameter.name != "in_dim"]
    complete = all(one.default is not Parameter.empty or one.kind is Parameter.VAR_KEYWORD for one in given)
    return complete and not getattr(target, "is_family", False)


def build_part(kind: str, part: dict[str, Any], **given: Any) -> nn.Module:
    """A registered part ``{"name": ..., keyword: value}``, with what the library passes along."""
    part = named(kind, part)
    return create(kind, part["name"], **given | {key: value for key, value in part.items() if key != "name"})
