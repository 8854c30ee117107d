"""Random numbers as a function of a seed and a place, so that neither padding, nor batch, nor device changes them."""

import math

import torch
from torch import Tensor

_BITS = 0xFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers (in int64) in which each bit moves all others.

    Source: "[16 21f0aaad 15 735a2d97 15]" of C. Wellons' hash prospector; the constants keep products below 2^63.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _BITS
    return x ^ (x >> 15)


def _hashed(*numbers: Tensor) -> Tensor:
    """int64 tensors that broadcast, 0 or more -> 32 bits for each combination."""
    found = _mixed(numbers[0] & _BITS)
    for number in numbers[1:]:
        found = _mixed(((found + 0x9E3779B9) ^ number) & _BITS)
    return found


def _share(x: Tensor) -> Tensor:
    """32 bits -> float32 in (0, 1), both ends left out: 23 bits and a half are exact."""
    return ((x >> 9).float() + 0.5) / 2**23


def uniform(*numbers: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float32: int64 tensors that broadcast, a seed and places -> one for each."""
    return _share(_hashed(*numbers))


def normal(*numbers: Tensor) -> Tensor:
    """Normal numbers of mean 0 and deviation 1, float32, as ``uniform``; source: Box and Muller 1958."""
    bits = _hashed(*numbers)
    radius = (-2 * _share(bits).log()).sqrt()
    return radius * torch.cos(2 * math.pi * _share(_mixed(bits ^ 0x5BD1E995)))
