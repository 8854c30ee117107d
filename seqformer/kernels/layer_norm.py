"""LayerNorm of a residual sum, and the learned scale of the branch that follows: one pass forward, one backward.

Forward reads both terms and writes the norm, and its scaled copy. Backward reads both terms again, so that no sum is
kept, and finds mean and deviation anew: a row is in registers. Sums over frames, for weight, bias, scale and shift,
are summed by programs first and then over programs: the same bits each time.

Why custom operators and not traced kernels: see ``depthwise.py``.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

FRAMES = 32  # of a backward program; each writes four sums of a frame's width
NUMBERS = 512  # of a tile of whole frames


@triton.jit
def _normal(x, y, place, real, factor, eps, D: tl.constexpr):
    """x + factor y without its mean and in units of its deviation, and one over that: (rows, width), (rows, 1)."""
    total = tl.load(x + place, mask=real, other=0.0).to(tl.float32)
    total += factor * tl.load(y + place, mask=real, other=0.0).to(tl.float32)
    centred = tl.where(real, total - tl.sum(total, 1)[:, None] / D, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * inverse[:, None], inverse[:, None]


@triton.jit
def _channels(x, column, D: tl.constexpr):
    return tl.load(x + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    x, y, weight, bias, scale, shift, out, scaled, N, factor, eps,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BD)[None, :]
    place, real = row * D + column, (row < N) & (column < D)
    normal, _ = _normal(x, y, place, real, factor, eps, D)
    value = normal * _channels(weight, column, D) + _channels(bias, column, D)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=real)
    if SCALED:
        value = value * _channels(scale, column, D) + _channels(shift, column, D)
        tl.store(scaled + place, value.to(scaled.dtype.element_ty), mask=real)


@triton.jit
def _backward(
    d_out, d_scaled, x, y, weight, bias, scale, d_x, d_y, sums, N, factor, eps,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    SCALED: tl.constexpr, BRANCH: tl.constexpr,
):  # fmt: skip
    """Gradients of both terms, and of this program's frames the sums for weight, bias, scale and shift (4, D)."""
    column = tl.arange(0, BD)[None, :]
    weights, biases = _channels(weight, column, D), _channels(bias, column, D)
    if SCALED:
        scales = _channels(scale, column, D)
    d_weight, d_bias = tl.zeros([ROWS, BD], tl.float32), tl.zeros([ROWS, BD], tl.float32)
    d_scale, d_shift = tl.zeros([ROWS, BD], tl.float32), tl.zeros([ROWS, BD], tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        place, real = row * D + column, (row < N) & (column < D)
        normal, inverse = _normal(x, y, place, real, factor, eps, D)
        grad = tl.load(d_out + place, mask=real, other=0.0).to(tl.float32)
        if SCALED:
            after = tl.load(d_scaled + place, mask=real, other=0.0).to(tl.float32)
            d_scale += after * (normal * weights + biases)
            d_shift += after
            grad += after * scales
        d_weight += grad * normal
        d_bias += grad
        grad *= weights
        grad -= tl.sum(grad, 1)[:, None] / D + normal * (tl.sum(grad * normal, 1)[:, None] / D)
        grad *= inverse
        tl.store(d_x + place, grad.to(d_x.dtype.element_ty), mask=real)
        if BRANCH:
            tl.store(d_y + place, (factor * grad).to(d_y.dtype.element_ty), mask=real)
    at = sums + tl.program_id(0) * 4 * D + tl.arange(0, BD)
    real = tl.arange(0, BD) < D
    tl.store(at, tl.sum(d_weight, 0), mask=real)
    tl.store(at + D, tl.sum(d_bias, 0), mask=real)
    if SCALED:
        tl.store(at + 2 * D, tl.sum(d_scale, 0), mask=real)
        tl.store(at + 3 * D, tl.sum(d_shift, 0), mask=real)


@torch.library.custom_op("seqformer::add_layer_norm", mutates_args=())
def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
    factor: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x, y (..., D) -> LayerNorm of x + factor y, and that times ``scale`` plus ``shift``, empty without them.

    The first has the finer dtype of both terms, as their sum; the second that of y, as it is for the next branch.
    """
    x, y = x.contiguous(), y.contiguous()
    out, scaled = _outputs(x, y, scale)
    sizes, frames = _sizes(x), x.numel() // x.shape[-1]
    warps = max(1, sizes["BD"] // NUMBERS)  # one warp adds up a frame without waiting for others
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(frames, sizes["ROWS"]),)](
            x, y, weight, bias, scale, shift, out, scaled, frames, factor, eps,
            SCALED=scale is not None, num_warps=warps, **sizes,
        )  # fmt: skip
    return out, scaled


@add_layer_norm.register_fake
def _(x, y, weight, bias, scale, shift, factor, eps):
    return _outputs(x, y, scale)


@torch.library.custom_op("seqformer::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward(
    d_out: Tensor, d_scaled: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    factor: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of y (empty where it is that of x), and (4, D) of weight, bias, scale and shift, float32."""
    d_out, d_scaled, x, y = (tensor.contiguous() for tensor in (d_out, d_scaled, x, y))
    sizes, (frames, D) = _sizes(x), (x.numel() // x.shape[-1], x.shape[-1])
    programs, branch = triton.cdiv(frames, FRAMES), _has_own(y, x, factor)
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape if branch else 0)
    sums = x.new_empty((programs, 4, D), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[(programs,)](
            d_out, d_scaled, x, y, weight, bias, scale, d_x, d_y, sums, frames, factor, eps,
            STEPS=triton.cdiv(FRAMES, sizes["ROWS"]), SCALED=scale is not None, BRANCH=branch, num_warps=4, **sizes,
        )  # fmt: skip
    return d_x, d_y, sums.sum(dim=0)


@add_layer_norm_backward.register_fake
def _(d_out, d_scaled, x, y, weight, bias, scale, factor, eps):
    d_y = y.new_empty(y.shape if _has_own(y, x, factor) else 0)
    return x.new_empty(x.shape), d_y, x.new_empty((4, x.shape[-1]), dtype=torch.float32)


def _outputs(x: Tensor, y: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    return out, y.new_empty(0 if scale is None else y.shape)


def _has_own(y: Tensor, x: Tensor, factor: float) -> bool:
    """Whether the gradient of y is another than that of x."""
    return factor != 1 or y.dtype != x.dtype


def _sizes(x: Tensor) -> dict[str, int]:
    width = triton.next_power_of_2(x.shape[-1])
    return {"D": x.shape[-1], "BD": width, "ROWS": max(1, NUMBERS // width)}


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.factor, ctx.eps = inputs
    if tensors[4] is None:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def _backward_of_both(ctx, d_out: Tensor, d_scaled: Tensor):
    x, y, weight, bias, scale, shift = ctx.saved_tensors
    d_x, d_y, sums = add_layer_norm_backward(d_out, d_scaled, x, y, weight, bias, scale, ctx.factor, ctx.eps)
    own = _has_own(y, x, ctx.factor)
    likes = zip((weight, bias, scale, shift), sums, strict=True)
    rest = [None if like is None else grad.to(like.dtype) for like, grad in likes]
    return d_x, d_y if own else d_x, *rest, None, None


add_layer_norm.register_autograd(_backward_of_both, setup_context=_save)
