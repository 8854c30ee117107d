"""Codes of frames that nothing learns: a random projection, and the nearest of random vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.precision import no_autocast


class RandomProjectionQuantizer(nn.Module):
    """x (..., dim) -> the number of the nearest code (...), int64.

    A is (dim, width), uniform as Glorot and Bengio have it, the codes (vocab, width) normal; nearest is argmin of
    || c / |c| - A x / |A x| ||, the largest cosine, the first of several. Both are made from ``seed`` and are buffers.
    Source: Chiu et al. 2022 (BEST-RQ, arXiv 2202.01855), section 3.1.
    """

    def __init__(self, dim: int, vocab: int = 8192, width: int = 16, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        bound = (6 / (dim + width)) ** 0.5
        self.register_buffer("projection", (2 * torch.rand(dim, width, generator=generator) - 1) * bound)
        self.register_buffer("codes", F.normalize(torch.randn(vocab, width, generator=generator), dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        # The length of A x changes no order of cosines.
        with no_autocast(x):
            return (x.float() @ self.projection @ self.codes.T).argmax(dim=-1)
