"""torch.compile of a backbone in training, so that nothing is compiled after the first steps.

Only the backbone: it has nearly all of the work and no branch on data, where log-mel's Fourier transform, a CTC loss or
a search would cut the graph. Each block is compiled by itself, for all blocks of an encoder are one function with other
weights: it is compiled once, in a time that does not grow with the depth. Items and frames are dynamic, and the frames
of a batch are a multiple of ``bucket``, so that no length has a remainder of its own; promise P1 is why that may be.

Off by default: torch 2.13's inductor, on a CPU, makes T a constant again in the backward of attention, and so compiles
for every multiple of ``bucket``; what it does on a GPU was not tried. Also known to compile again: a batch of one item
(sizes of 1 are never dynamic), and 16 or more after fewer (where torch changes its convolutions), so up to three times
for each kind of block, and for each rate of ``drop_path``.
"""

from typing import Literal

import torch
from torch import nn
from torch._dynamo.utils import counters

BACKEND = "inductor"
ALIGNED = 8  # frames at the lowest rate, 16 bytes of bfloat16: rows of attention begin where a GPU's loads do


def compile_backbone(backbone: nn.Module, kind: Literal[True, "graphs"]) -> None:
    """Compile a backbone in place; names of its weights, and copies made of it, stay as they are.

    ``graphs`` compiles it whole and has its kernels recorded as one CUDA graph for each size of a batch: for models
    so small that starting kernels takes longer than running them. Never run on a GPU so far.
    """
    blocks = getattr(backbone, "blocks", [])
    # Each block may have a rate of drop_path of its own, which is a constant to the compiler.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    mode = {"mode": "reduce-overhead"} if kind == "graphs" else {}
    for part in blocks if blocks and kind is True else [backbone]:
        part.compile(backend=BACKEND, dynamic=True, **mode)


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
