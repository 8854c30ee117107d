"""Microseconds of the fused kernels on a GPU, beside the plain path, and their share of what the card could do.

A kernel's floor is the larger of two times: its least bytes (each input read once, each output written once) at the
speed of a large copy, and its products at the speed of a large matrix product, both measured here first. 100 % would
be a kernel at its floor. Forward and backward are timed apart, each median with cold caches.
``python -m benchmarks.kernels --batch 40 --frames 250``: 400 s of audio, ten seconds each, a quarter of the rate.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqformer import kernels
from seqformer.nn.conv import DepthwiseConv
from seqformer.nn.positions import relative_shift

WIDTHS = [(192, 4), (196, 4), (320, 5), (324, 4)]  # (dim, heads): aligned presets beside the paper's


@dataclass(frozen=True)
class Case:
    """One operator both ways, with its least traffic (numbers moved) and arithmetic (multiply-adds), (there, back)."""

    name: str
    fused: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    leaves: list[Tensor]
    numbers: tuple[int, int]
    products: tuple[int, int] = (0, 0)


def cases(batch: int, frames: int, dtype: torch.dtype) -> list[Case]:
    mask = torch.ones(batch, frames, dtype=torch.bool, device="cuda")
    found = []
    for dim, heads in WIDTHS:
        found += [convolution(mask, 2 * dim, dtype), attention(mask, dim, heads, dtype), norm(mask, dim, dtype)]
    return found


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=True)


def convolution(mask: Tensor, channels: int, dtype: torch.dtype) -> Case:
    module, size = DepthwiseConv(channels, 31).cuda(), mask.numel() * channels
    return Case(
        f"depthwise 31 x {channels}",
        lambda x, weight, bias: kernels.depthwise_conv(x, mask, weight, bias, module.left),
        lambda x, weight, bias: torch.func.functional_call(
            module, {"weight": weight.to(x.dtype), "bias": bias.to(x.dtype)}, (x, mask)
        ),
        [leaf(*mask.shape, channels, dtype=dtype), *module.parameters()],
        (2 * size, 3 * size),
    )


def attention(mask: Tensor, dim: int, heads: int, dtype: torch.dtype) -> Case:
    (B, T), K = mask.shape, dim // heads

    def plain(q_content: Tensor, q_position: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
        q_BHTK, position_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_content, q_position, k, v))
        score = relative_shift(position_BHTK @ p.permute(1, 2, 0) * K**-0.5)
        score = score.masked_fill(~mask[:, None, None], float("-inf"))
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, score).transpose(1, 2)

    size, table, products = B * T * dim, (2 * T - 1) * dim, B * T * T * dim
    return Case(
        f"attention {heads} x {K}",
        lambda q_content, q_position, k, v, p: kernels.relative_attention(q_content, q_position, k, v, p, mask),
        plain,
        [leaf(B, T, heads, K, dtype=dtype) for _ in range(4)] + [leaf(2 * T - 1, heads, K, dtype=dtype)],
        (5 * size + table, 10 * size + 2 * table),
        (3 * products, 8 * products),  # back: scores and weights again, and one product for each of five gradients
    )


def norm(mask: Tensor, dim: int, dtype: torch.dtype) -> Case:
    size = mask.numel() * dim
    return Case(
        f"layer norm of a sum {dim}",
        lambda x, y, weight, bias: kernels.add_layer_norm(x, y, weight, bias)[0],
        lambda x, y, weight, bias: F.layer_norm(x + y, (dim,), weight.to(x.dtype), bias.to(x.dtype)),
        [leaf(*mask.shape, dim, dtype=dtype), leaf(*mask.shape, dim, dtype=dtype), leaf(dim), leaf(dim)],
        (3 * size, 4 * size),
    )


def seconds(step: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(step, return_mode="median") / 1000


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes moved, and multiply-adds done, in a second."""
    source = torch.randn(1 << 28, device="cuda")
    target, square = torch.empty_like(source), torch.randn(8192, 8192, device="cuda", dtype=dtype)
    moved = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return moved, 8192**3 / seconds(lambda: square @ square)


def both_ways(function: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[float, float]:
    """Seconds there, without a graph, and back."""
    with torch.no_grad():
        there = seconds(lambda: function(*leaves))
    y = function(*leaves)
    grad = torch.randn_like(y)
    return there, seconds(lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: the kernels have nothing to be timed on here; tests/test_kernels.py interprets them")
        return
    dtype = getattr(torch, options.dtype)
    moved, done = ceilings(dtype)
    print(f"{torch.cuda.get_device_name()}, {options.batch} x {options.frames} frames, {options.dtype}: ", end="")
    print(f"copy {moved / 1e12:.2f} TB/s, products {2 * done / 1e12:.0f} TFLOP/s")
    print(f"{'':24} {'':8} {'kernel us':>10} {'of floor':>9} {'plain us':>10} {'ratio':>6}")
    for case in cases(options.batch, options.frames, dtype):
        fused, plain = both_ways(case.fused, case.leaves), both_ways(case.plain, case.leaves)
        for way, took, beside, numbers, products in zip(
            ("forward", "backward"), fused, plain, case.numbers, case.products, strict=True
        ):
            floor = max(numbers * dtype.itemsize / moved, products / done)
            share = f"{floor / took:9.0%} {1e6 * beside:10.1f} {beside / took:6.2f}"
            print(f"{case.name:24} {way:8} {1e6 * took:10.1f} {share}")


if __name__ == "__main__":
    main()
