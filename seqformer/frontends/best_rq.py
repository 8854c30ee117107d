"""Self-supervised pretraining: spans of frames become noise, and what was there is to be guessed as a code."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.frontends.features import Features, inner_frontend
from seqformer.nn.draws import normal, uniform
from seqformer.nn.mask import stride_mask, strided, zero_padding
from seqformer.nn.quantize import RandomProjectionQuantizer
from seqformer.nn.standardize import standardize_item
from seqformer.registry import register


@register("frontend", "best_rq")
class BestRQ(nn.Module):
    """Another frontend, whose frames are masked -> its Features with targets ``codes`` (B, ceil(T / stride)).

    A code is of ``stride`` frames as they were, side by side: set ``stride`` to the backbone's, so that each frame that
    it gives has one. They are standardised per channel over the item's real frames, and numbered by a
    RandomProjectionQuantizer of ``vocab`` codes of ``width``, made from ``seed``. Targets are -1, not scored, where
    nothing is masked. With the chance ``start`` a span of ``span`` frames begins at a frame, rounded up to whole
    groups of ``stride``; what spans cover is replaced by noise of mean 0 and deviation ``noise``. Draws come from
    torch's generator in training, one number an item, and do not depend on padding; out of training all items are
    masked by the same draws, always.

    The frontend inside must learn nothing: codes of learned features would move with them. Raises ValueError if it
    does, or masks by itself. Source: Chiu et al. 2022 (BEST-RQ, arXiv 2202.01855), where 0.01 and 400 ms are the
    numbers for speech; it standardises features over the corpus.
    """

    makes = {"codes": "vocab"}  # targets that are no column of the manifest, and the keyword with their number

    def __init__(
        self,
        frontend: dict[str, Any],
        stride: int = 4,
        start: float = 0.01,
        span: int = 40,
        noise: float = 0.1,
        vocab: int = 8192,
        width: int = 16,
        seed: int = 0,
    ):
        super().__init__()
        self.frontend = inner_frontend(frontend)
        if any(True for _ in self.frontend.parameters()) or getattr(self.frontend, "spec_augment", None):
            raise ValueError(f"frontend {frontend['name']!r} cannot be inside: it learns, or masks frames itself")
        if stride < 1 or span < 1 or not 0 <= start <= 1:
            raise ValueError(f"stride {stride}, span {span}, start {start}: expected 1 or more twice, and 0 to 1")
        self.stride, self.start, self.span, self.noise = stride, 1 - (1 - start) ** stride, -(-span // stride), noise
        self.dim = self.frontend.dim
        self.quantizer = RandomProjectionQuantizer(stride * self.dim, vocab, width, seed)

    @property
    def rate(self) -> int:
        """Samples a second, where the frontend inside reads audio."""
        return self.frontend.rate

    @property
    def hop(self) -> int:
        """Samples of a frame, where the frontend inside has frames of several."""
        return self.frontend.hop

    @property
    def fit(self):
        """That of the frontend inside, where it has one."""
        return self.frontend.fit

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        features = self.frontend(inputs, mask)
        x, mask = features.x.float(), features.mask
        seeds = self._seeds(x)
        covered = self._covered(seeds, strided(x.shape[1], self.stride))
        wanted = covered & stride_mask(mask, self.stride)
        codes = self.codes_of(x, mask).masked_fill(~wanted, -1)
        hidden = covered[..., None].expand(-1, -1, self.stride).flatten(1)[:, : x.shape[1]]
        frames, columns = (torch.arange(size, device=x.device) for size in x.shape[1:])
        noise = self.noise * normal(seeds[:, None, None] + 1, frames[:, None], columns)
        x = torch.where(hidden[..., None], noise, x)
        return Features(zero_padding(x, mask), mask, features.bias, {"codes": codes})

    def codes_of(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features x (B, T, F), mask (B, T) -> codes (B, ceil(T / stride)), of padding any."""
        x = standardize_item(x, mask).nan_to_num(nan=0.0)
        groups = strided(x.shape[1], self.stride)
        x = F.pad(x, (0, 0, 0, groups * self.stride - x.shape[1]))
        return self.quantizer(x.reshape(x.shape[0], groups, self.stride * self.dim))

    def _seeds(self, x: Tensor) -> Tensor:
        """A number for each item (B,), the only draw there is."""
        if not self.training:
            return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return torch.randint(2**31 - 1, (x.shape[0],), device=x.device)

    def _covered(self, seeds: Tensor, groups: int) -> Tensor:
        """seeds (B,) -> (B, groups) bool, True in a span."""
        places = torch.arange(groups, device=seeds.device)
        begun = (uniform(seeds[:, None], places) < self.start).long().cumsum(dim=1)
        return begun > F.pad(begun, (self.span, 0))[:, :groups]  # one more than a span ago
