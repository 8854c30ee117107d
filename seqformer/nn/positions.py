"""Relative positions: the Transformer-XL sinusoids and their shift, rotary embedding, ALiBi, T5's and Shaw's tables.

All are functions of the distance i - j alone, so padding cannot change them.
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
    if torch.compiler.is_dynamo_compiling():
        if T == 1:
            return score_BHTR
        # The compiler fuses these copies away, knows no offset of a storage, and not by itself what R has to do with T.
        torch._check(R == 2 * T - 1)
        return score_BHTR.flatten(2)[..., T - 1 : -1].view(B, H, T, 2 * T - 2)[..., :T]
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


def distances(frames: int, like: Tensor) -> Tensor:
    """j - i for query i and key j, (frames, frames), int64."""
    index = torch.arange(frames, device=like.device)
    return index - index[:, None]


def alibi_slopes(heads: int) -> Tensor:
    """Slopes (heads,) of attention with linear biases: 2^(-8h / heads) for h = 1 ... heads.

    Source: Press et al. 2022. Where ``heads`` is no power of two, the slopes of the next lower one come first, then
    every second one of the next higher, as in the authors' code.
    """
    lower = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (h + 1) / lower) for h in range(lower)]
    rest = [2 ** (-8 * (h + 1) / (2 * lower)) for h in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(first + rest)


def t5_bucket(distance: Tensor, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket number of a distance j - i, in both directions: exact when near, by its logarithm when far.

    Source: Raffel et al. 2020, section 2.1. Half of the buckets are for later keys; in each half the first half holds
    one distance each, and ``max_distance`` and beyond share the last.
    """
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    share = (size.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)
