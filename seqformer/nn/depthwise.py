"""One filter per channel over time, as one operator that torch.compile does not look into: import it when needed.

Left to itself, inductor (torch 2.13) makes constants of the sizes of a batch where it meets the gradient of a
convolution, on a CPU lays out the attention beside it for a convolution, and compiles again from 16 items on, where
torch changes its algorithm. There is nothing to gain by the look: it calls the same library.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("seqformer::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """x (B, T, C), weight (C, 1, 1, kernel), bias (C,) -> (B, (T - kernel) // stride + 1, C); nothing is padded."""
    y = F.conv2d(as_image(x.contiguous()), weight, bias, stride=(1, stride), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2).contiguous()


@depthwise.register_fake
def _(x, weight, bias, stride):
    B, T, C = x.shape
    return x.new_empty((B, (T - weight.shape[3]) // stride + 1, C))


@torch.library.custom_op("seqformer::depthwise_backward", mutates_args=())
def depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    grad, image, C = as_image(grad.contiguous()), as_image(x.contiguous()), x.shape[2]
    to_image, to_weight, to_bias = torch.ops.aten.convolution_backward(
        grad, image, weight, [C], [1, stride], [0, 0], [1, 1], False, [0, 0], C, [True, True, True]
    )
    return to_image.squeeze(2).transpose(1, 2).contiguous(), to_weight.contiguous(), to_bias


@depthwise_backward.register_fake
def _(grad, x, weight, stride):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _keep(ctx, inputs, output):
    x, weight, bias, ctx.stride = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx, grad):
    to_x, to_weight, to_bias = depthwise_backward(grad, *ctx.saved_tensors, ctx.stride)
    return to_x, to_weight, to_bias if ctx.has_bias else None, None


depthwise.register_autograd(_gradients, setup_context=_keep)


def as_image(x: Tensor) -> Tensor:
    """A (B, T, C) tensor *is* a channels-last image of height 1, (B, C, 1, T): the layout with the fast kernels."""
    return x.transpose(1, 2).unsqueeze(2)
