"""Backbones: (x (B, T, F), mask) -> (B, ceil(T / stride), D), mask. One file per paper, one import line each."""

from seqformer.backbones import conformer, conformer_swb, contextnet, fastconformer, ladder, squeezeformer  # noqa: F401
