"""What every frontend returns, and how one is put inside another."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from seqformer.errors import InputError
from seqformer.registry import create, named


class Features(NamedTuple):
    """x (B, T, F), mask (B, T), and an optional bias of the attention logits: (B, H, T, T), or H for each block.

    ``targets`` are those that a frontend makes of its input, for heads that no column of the manifest teaches.
    """

    x: Tensor
    mask: Tensor
    bias: Tensor | None = None
    targets: dict[str, Tensor] | None = None


def inner_frontend(part: dict[str, Any]) -> nn.Module:
    """The registered frontend ``{"name": ..., keyword: value}`` that another one is built around."""
    part = named("frontend", part)
    return create("frontend", part["name"], **{key: value for key, value in part.items() if key != "name"})


def field_of(inputs: dict[str, Tensor], field: str, wanted: str) -> Tensor:
    """A named input. Raises InputError, which says what was ``wanted``, when the batch has none of that name."""
    if field not in inputs:
        raise InputError(f"a batch has no input {field!r}: {wanted}; it has {', '.join(sorted(inputs))}")
    return inputs[field]
