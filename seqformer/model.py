"""SequenceModel: frontend -> backbone -> heads."""

from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

import seqformer.backbones
import seqformer.frontends
import seqformer.heads  # noqa: F401  importing these registers their names
from seqformer.registry import create, named, names


class SequenceModel(nn.Module):
    """``model(inputs, mask)`` -> {head: logits}; with ``targets`` and ``weight`` -> {"loss": ..., head: its loss}.

    Training goes through ``forward`` too, so that data parallel wrappers and the compiler see it. ``weights`` are the
    shares of the heads in the total loss.
    """

    def __init__(
        self, frontend: nn.Module, backbone: nn.Module, heads: dict[str, nn.Module], weights: dict[str, float]
    ):
        super().__init__()
        self.frontend, self.backbone, self.heads = frontend, backbone, nn.ModuleDict(heads)
        self.weights = weights
        self.parts: dict[str, Any] | None = None  # what create_model was given, to be made again from
        self.tokenizer = None  # of a checkpoint with one: units -> text

    def forward(
        self,
        inputs: dict[str, Tensor],
        mask: Tensor,
        targets: dict[str, Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        features = self.frontend(inputs, mask)
        x, mask = self.backbone(features.x, features.mask, features.bias)
        if targets is None:
            return {name: head(x, mask) for name, head in self.heads.items()}
        losses = {name: head.loss(x, mask, targets[head.target], weight) for name, head in self.heads.items()}
        found = {"loss": sum(self.weights[name] * loss for name, loss in losses.items())} | losses
        for head in self.heads.values():
            if hasattr(head, "infeasible"):
                found["infeasible"] = head.infeasible(mask, targets[head.target]).sum()
        return found

    def loss(self, batch) -> Tensor:
        """The total loss of a Batch, float32."""
        return self(batch.inputs, batch.mask, batch.targets, batch.weight)["loss"]

    def predict(self, batch) -> dict[str, list]:
        """{head: one prediction per item} of a Batch."""
        return self.evaluate(batch)[0]

    @torch.no_grad()
    def evaluate(self, batch) -> tuple[dict[str, list], Tensor | None]:
        """Predictions as ``predict`` gives them and, where the batch has targets, the total loss, in one pass."""
        features = self.frontend(batch.inputs, batch.mask)
        x, mask = self.backbone(features.x, features.mask, features.bias)
        found = {name: head.predict(x, mask) for name, head in self.heads.items()}
        if not batch.targets:
            return found, None
        losses = (
            self.weights[name] * head.loss(x, mask, batch.targets[head.target], batch.weight)
            for name, head in self.heads.items()
        )
        return found, sum(losses)


def create_model(frontend: dict[str, Any], backbone: dict[str, Any], head: dict[str, Any]) -> SequenceModel:
    """Build a model of registered parts, each ``{"name": ..., keyword: value}``.

    ``head`` is one such part or several, {their name: part}, each with an optional ``weight`` in the loss. Widths are
    passed along: the frontend's to the backbone, the backbone's to the heads. Raises InputError on an unknown name
    or keyword or a value of the wrong type.
    """
    front = _build("frontend", frontend)
    body = _build("backbone", backbone, in_dim=front.dim)
    parts = {part_name: dict(part) for part_name, part in head_parts(head).items()}
    weights = {part_name: float(part.pop("weight", 1.0)) for part_name, part in parts.items()}
    heads = {key: _build("head", part, dim=body.dim) for key, part in parts.items()}
    model = SequenceModel(front, body, heads, weights)
    if not hasattr(body, "part"):  # that of a checkpoint's has its own architecture, not the path it was read from
        body.part = backbone | {"in_dim": front.dim}
    own = {key: value for key, value in body.part.items() if key != "in_dim"}
    model.parts = {"frontend": frontend, "backbone": own, "head": head}
    return model


def head_parts(head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One head ``{"name": ...}`` becomes {its name: itself}; several stay as they are."""
    return {head["name"]: head} if isinstance(head.get("name"), str) else head


def create_backbone(name: str, **arguments: Any) -> nn.Module:
    """A backbone by its registered name, any constructor argument overridden by keyword."""
    return _build("backbone", {"name": name} | arguments)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones that match an fnmatch pattern: presets, and the classes they are sizes of."""
    return [name for name in names("backbone") if fnmatch(name, pattern)]


def _build(kind: str, part: dict[str, Any], **given: Any) -> nn.Module:
    part = named(kind, part)
    return create(kind, part["name"], **given | {key: value for key, value in part.items() if key != "name"})
