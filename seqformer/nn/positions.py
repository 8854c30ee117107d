"""Relative positions: the Transformer-XL sinusoid table with its shift, and rotary embedding.

Both are functions of the distance i - j alone, so padding cannot change them.
"""

import math

import torch
from torch import Tensor


def sinusoid_table(frames: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances frames-1 ... -(frames-1) -> (2 frames - 1, dim); sine in even channels.

    Source: Transformer-XL (Dai et al. 2019, section 3.3). Computed in float32, returned in the dtype of ``like``.
    """
    distance = torch.arange(frames - 1, -frames, -1, device=like.device, dtype=torch.float32)
    channel = torch.arange(0, dim, 2, device=like.device, dtype=torch.float32)
    angle = distance[:, None] * torch.exp(channel * (-math.log(10000.0) / dim))
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
    return table.to(like.dtype)


def relative_shift(score_BHTR: Tensor) -> Tensor:
    """Scores against distances T-1 ... -(T-1), (B, H, T, 2T-1), -> scores against keys (B, H, T, T).

    Query i and key j meet at column T-1-i+j: a view with row stride one less than the table is wide, no copy.
    """
    B, H, T, R = score_BHTR.shape
    score_BHTR = score_BHTR.contiguous()
    return score_BHTR.as_strided((B, H, T, T), (H * T * R, T * R, R - 1, 1), score_BHTR.storage_offset() + T - 1)


def rotate(x_BHTK: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding of queries or keys; of an odd head width the last channel stays as it is.

    Source: RoFormer (Su et al. 2021), the half-split form.
    """
    T, half = x_BHTK.shape[2], x_BHTK.shape[3] // 2
    index = torch.arange(half, device=x_BHTK.device, dtype=torch.float32)
    angle = torch.arange(T, device=x_BHTK.device, dtype=torch.float32)[:, None] * base ** (-index / half)
    cos, sin = angle.cos().to(x_BHTK.dtype), angle.sin().to(x_BHTK.dtype)
    first, second, rest = x_BHTK[..., :half], x_BHTK[..., half : 2 * half], x_BHTK[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
