"""torch.compile of a backbone in training, so that nothing is compiled after the first steps.

Only the backbone: it has nearly all of the work and no branch on data, where log-mel's Fourier transform, a CTC loss or
a search would cut the graph. Each block is compiled by itself, for all blocks of an encoder are one function with other
weights: it is compiled once, in a time that does not grow with the depth. Items and frames are dynamic, and the frames
of a batch are a multiple of ``bucket``, so that no length has a remainder of its own. A batch of one item, whose size
the compiler would make a constant, is given an empty one beside it. Promise P1 is why both may be.

With torch 2.13's inductor on a CPU no length has a graph of its own. A block has one for each of the few things the
compiler cannot put into one: items x frames at its rate above 4096 or not (from there on inductor adds up floats in
pieces), an input that is a view or not (as the first block's is), each rate of ``drop_path``. Off by default: compiling
takes up to a minute for each, and what a GPU does was not tried.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch._dynamo.utils import counters

BACKEND = "inductor"
ALIGNED = 8  # frames at the lowest rate, 16 bytes of bfloat16: rows of attention begin where a GPU's loads do


def compile_backbone(backbone: nn.Module, kind: Literal[True, "graphs"]) -> None:
    """Compile a backbone in place; names of its weights, and copies made of it, stay as they are.

    ``graphs`` compiles it whole and has its kernels recorded as one CUDA graph for each size of a batch: for models
    so small that starting kernels takes longer than running them. Never run on a GPU so far.
    """
    blocks = getattr(backbone, "blocks", [])
    if not blocks or kind == "graphs":
        backbone.compile(backend=BACKEND, dynamic=True, mode="reduce-overhead" if kind == "graphs" else None)
        return
    # Each block may have a rate of drop_path of its own, which is a constant to the compiler.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    # Sizes of the first batch that happen to be equal, such as items and channels, are not the same size.
    torch.fx.experimental._config.use_duck_shape = False
    for block in blocks:
        # As Module.compile does, but for the company: a copy of a module loses it in the same way.
        block._compiled_call_impl = accompanied(torch.compile(block._call_impl, backend=BACKEND, dynamic=True))


def accompanied(call: Callable) -> Callable:
    """A block's call of x (B, T, D), mask (B, T), and more, where a single item has an empty one beside it."""

    def called(x: Tensor, mask: Tensor, *more: Tensor | None):
        if len(x) > 1 or not torch.is_grad_enabled():
            return call(x, mask, *more)
        more = [_with_empty(each) if each is not None and each.dim() == 4 else each for each in more]  # a bias
        found = call(_with_empty(x), _with_empty(mask), *more)
        return found[:1] if torch.is_tensor(found) else tuple(each[:1] for each in found)

    return called


def _with_empty(items: Tensor) -> Tensor:
    return torch.cat([items, torch.zeros_like(items)])


def bucket(frontend: nn.Module, backbone: nn.Module) -> int:
    """What the frames of a batch, as the frontend reads them, are a multiple of when the backbone is compiled."""
    stride = max(backbone.stride, getattr(getattr(backbone, "stem", None), "stride", 1))
    lowest = stride * 2 ** len(getattr(backbone, "recover_at", ()))
    return ALIGNED * lowest * getattr(frontend, "hop", 1)


def compilations() -> int:
    """Graphs compiled by this process so far."""
    return counters["stats"]["unique_graphs"]


def uncompiled():
    """A context in which compiled modules run as they were written: for validation, whose lengths are others."""
    return torch.compiler.set_stance("force_eager")
