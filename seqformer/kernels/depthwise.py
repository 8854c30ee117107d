"""Masked depthwise convolution over time, channels last: forward, and backward for x, weight and bias.

A program is one warp that walks along the time of 32 or 64 channels. It holds the taps and the last ``kernel`` frames
in registers, so that a frame is loaded once and not once for each tap; padding is zeroed as it is loaded.

The operators are ``torch.library.custom_op``: torch.compile keeps them whole (there is nothing around them to fuse,
the epilogue is inside), knows their shapes from the fake functions and their gradients from ``register_autograd``, and
``torch.library.opcheck`` tests all that on a CPU, by the interpreter.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

ROWS = 8  # frames of a step: loaded ahead while the step before is computed
SEGMENT = {"filter": 64, "taps": 128}  # frames of a program; the second writes sums for each, so it takes more


@triton.jit
def _frame(x, t, end, channel, real_channel, C: tl.constexpr):
    """Frame t of an item as float32, zero outside 0 ... end - 1."""
    return tl.load(x + t * C + channel, mask=real_channel & (t >= 0) & (t < end), other=0.0).to(tl.float32)


@triton.jit
def _filter(
    x, taps, bias, y, lengths, T, left,
    C: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    BACKWARD: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y(t) = bias + sum over k of taps(k) x(t - left + k); x is zeroed from the item's length on, or backward y is."""
    tiles: tl.constexpr = (C + BC - 1) // BC
    segments = tl.cdiv(T, ROWS * STEPS)
    segment, item = (tl.program_id(0) // tiles) % segments, tl.program_id(0) // (tiles * segments)
    channel = (tl.program_id(0) % tiles) * BC + tl.arange(0, BC)
    real = channel < C
    length = tl.load(lengths + item)
    end = T if BACKWARD else length
    x += item.to(tl.int64) * T * C
    y += item.to(tl.int64) * T * C
    start = segment * ROWS * STEPS

    tap = ()
    for k in tl.static_range(K):
        tap = tap + (tl.load(taps + (K - 1 - k if BACKWARD else k) * C + channel, mask=real, other=0.0).to(tl.float32),)
    window = ()
    for row in tl.static_range(K - 1 + ROWS):
        window = window + (_frame(x, start - left + row, end, channel, real, C),)
    base = tl.zeros([BC], tl.float32)
    if BIAS:
        base += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    for step in range(tl.minimum(STEPS, tl.cdiv(T - start, ROWS))):
        t = start + step * ROWS
        ahead = ()
        for row in tl.static_range(ROWS):
            ahead = ahead + (_frame(x, t - left + K - 1 + ROWS + row, end, channel, real, C),)
        for row in tl.static_range(ROWS):
            sums = base
            for k in tl.static_range(K):
                sums += tap[k] * window[row + k]
            if SILU:
                sums = sums * tl.sigmoid(sums)
            if BACKWARD:
                sums = tl.where(t + row < length, sums, 0.0)
            tl.store(y + (t + row) * C + channel, sums.to(y.dtype.element_ty), mask=real & (t + row < T))
        window = window[ROWS:] + ahead


@triton.jit
def _tap_sums(
    x, dy, sums, lengths, T, left,
    C: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Of one segment: sums (K + 1, C), over t of dy(t) x(t - left + k) for each tap k, and in the last row of dy."""
    tiles: tl.constexpr = (C + BC - 1) // BC
    segments = tl.cdiv(T, ROWS * STEPS)
    place = tl.program_id(0) // tiles
    segment, item = place % segments, place // segments
    channel = (tl.program_id(0) % tiles) * BC + tl.arange(0, BC)
    real = channel < C
    length = tl.load(lengths + item)
    x += item.to(tl.int64) * T * C
    dy += item.to(tl.int64) * T * C
    start = segment * ROWS * STEPS

    window, total = (), ()
    for row in tl.static_range(K - 1):
        window = window + (_frame(x, start - left + row, length, channel, real, C),)
    for _ in tl.static_range(K + 1):
        total = total + (tl.zeros([BC], tl.float32),)
    for step in range(tl.minimum(STEPS, tl.cdiv(T - start, ROWS))):
        t = start + step * ROWS
        grad = ()
        for row in tl.static_range(ROWS):
            window = window + (_frame(x, t - left + K - 1 + row, length, channel, real, C),)
            grad = grad + (_frame(dy, t + row, T, channel, real, C),)
        for row in tl.static_range(ROWS):
            found = ()
            for k in tl.static_range(K):
                found = found + (total[k] + grad[row] * window[row + k],)
            total = found + (total[K] + grad[row],)
        window = window[ROWS:]
    for k in tl.static_range(K + 1):
        tl.store(sums + (place.to(tl.int64) * (K + 1) + k) * C + channel, total[k], mask=real)


@torch.library.custom_op("seqformer::depthwise_conv", mutates_args=())
def depthwise_conv(x: Tensor, taps: Tensor, bias: Tensor | None, lengths: Tensor, left: int, silu: bool) -> Tensor:
    """x (B, T, C), taps (kernel, C), bias (C,), lengths (B,) -> (B, T, C); no gradient with ``silu``."""
    return _run_filter(x, taps, bias, lengths, left, silu=silu)


@depthwise_conv.register_fake
def _(x, taps, bias, lengths, left, silu):
    return x.new_empty(x.shape)


@torch.library.custom_op("seqformer::depthwise_conv_backward", mutates_args=())
def depthwise_conv_backward(dy: Tensor, x: Tensor, taps: Tensor, lengths: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of taps with that of the bias below them, (kernel + 1, C) float32.

    The second are sums over programs of fixed sums of theirs: no atomics, the same bits each time.
    """
    dy, x = dy.contiguous(), x.contiguous()
    (B, T, C), kernel = x.shape, taps.shape[0]
    dx = _run_filter(dy, taps, None, lengths, kernel - 1 - left, backward=True).to(x.dtype)
    steps, block = SEGMENT["taps"] // ROWS, _channels(kernel)
    segments = B * triton.cdiv(T, ROWS * steps)
    sums = x.new_empty((segments, kernel + 1, C), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _tap_sums[(segments * triton.cdiv(C, block),)](
            x, dy, sums, lengths, T, left, C, kernel, block, ROWS, steps, num_warps=1
        )  # fmt: skip
    return dx, sums.sum(dim=0)


@depthwise_conv_backward.register_fake
def _(dy, x, taps, lengths, left):
    return x.new_empty(x.shape), taps.new_empty((taps.shape[0] + 1, taps.shape[1]), dtype=torch.float32)


def _run_filter(x, taps, bias, lengths, left, backward=False, silu=False) -> Tensor:
    x, taps = x.contiguous(), taps.contiguous()
    (B, T, C), kernel = x.shape, taps.shape[0]
    steps, block, y = SEGMENT["filter"] // ROWS, _channels(kernel), torch.empty_like(x)
    grid = (B * triton.cdiv(T, ROWS * steps) * triton.cdiv(C, block),)
    with torch.cuda.device_of(x):
        _filter[grid](
            x, taps, bias, y, lengths, T, left, C, kernel, block, ROWS, steps,
            backward, bias is not None, silu, num_warps=1,
        )  # fmt: skip
    return y


def _channels(kernel: int) -> int:
    """Channels of a program: two to a thread while taps and frames of both fit in its registers."""
    return 64 if kernel <= 32 else 32


def _save(ctx, inputs, output) -> None:
    x, taps, bias, lengths, ctx.left, ctx.silu = inputs
    ctx.save_for_backward(x, taps, lengths)
    ctx.bias = None if bias is None else bias.dtype


def _backward(ctx, dy: Tensor):
    if ctx.silu:
        raise RuntimeError("depthwise_conv has no gradient with silu: apply it to the result where one is wanted")
    x, taps, lengths = ctx.saved_tensors
    dx, sums = depthwise_conv_backward(dy, x, taps, lengths, ctx.left)
    dbias = None if ctx.bias is None else sums[-1].to(ctx.bias)
    return dx, sums[:-1].to(taps.dtype), dbias, None, None, None


depthwise_conv.register_autograd(_backward, setup_context=_save)
