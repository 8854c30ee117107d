"""Linear layers side by side as one product, with a learned scale before them folded into their weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.norm import LearnedScale
from seqformer.nn.paths import fast_on_cpu


def joined(x: Tensor, linears: tuple[nn.Linear, ...], scale: LearnedScale | None = None) -> Tensor:
    """Outputs of linear layers of x, or of its learned scale, after each other: x (B, T, D) -> (B, T, sum of widths).

    W (x * s + b) + c = (W * s) x + (W b + c): where there are more frames than weights in a row, scaling the weights
    costs less than scaling the frames, and nothing but x is kept for backward.
    """
    if scale is not None and not (fast_on_cpu(x) and x.shape[:-1].numel() > x.shape[-1]):
        x, scale = scale(x), None
    if len(linears) == 1 and scale is None:
        return linears[0](x)
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    if scale is not None:
        shift = weight @ scale.bias
        weight, bias = weight * scale.scale, shift if bias is None else shift + bias
    return F.linear(x, weight, bias)
