"""Which of two equal ways to compute a layer is taken: the fast one for an eager CPU, or the plain one for all else.

Fast paths look at values (are there padded frames at all?) and loop over items; neither a graph of ``torch.compile``
or ``torch.export`` nor a GPU that runs ahead of Python can do so. Every fast path has its plain one as its test.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_plain_only = False


@contextmanager
def plain_paths() -> Iterator[None]:
    """Compute everything the plain way inside, for comparison and for counting operations."""
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


def fast_on_cpu(x: Tensor) -> bool:
    """Whether the fast path of an eager CPU may be taken for x."""
    return x.device.type == "cpu" and not _plain_only and not torch.compiler.is_compiling()
