"""Fused operators for GPUs, written in Triton. Each has the plain path of ``seqformer.nn`` beside it as its test.

They are off until ``seqformer.kernels.use(True)``, and triton is imported at their first call: nothing here needs it
before. With ``TRITON_INTERPRET=1`` in the environment they run on CPU tensors, slowly, which is how they are tested.
Masks as everywhere: (B, T) bool, True = real frame, real frames first; padding may hold anything, NaN too.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from seqformer.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_devices: tuple[str, ...] = ()  # types of device on which modules take the kernels


def available() -> bool:
    """Whether the kernels can run here: triton is installed, and there is a GPU or the interpreter is asked for."""
    return find_spec("triton") is not None and (torch.cuda.is_available() or _interpreted())


def use(on: bool) -> None:
    """Let modules of ``seqformer.nn`` take the kernels where tensors fit. Raises InputError when they cannot run."""
    global _devices
    if on and not available():
        raise InputError("kernels need triton and a CUDA device, and one of them is missing; leave them off")
    _devices = ("cuda", "cpu") if on and _interpreted() else ("cuda",) if on else ()


def active(x: Tensor) -> bool:
    """Whether modules take the kernels for a tensor like this one."""
    return x.device.type in _devices and x.dtype in DTYPES


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def depthwise_conv(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, left: int, silu: bool = False
) -> Tensor:
    """One filter per channel over time, stride 1: x (B, T, C), mask (B, T), weight (C, 1, kernel) -> (B, T, C).

    As ``nn.conv.DepthwiseConv``; kernel 2 to 63, ``left`` frames of padding before the first. ``silu`` activates the
    result, in the same pass where no gradient is wanted; a norm before it belongs into weight and bias.
    """
    from seqformer.kernels.depthwise import depthwise_conv as convolve

    taps, lengths = weight.squeeze(1).t(), mask.sum(dim=1)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    y = convolve(x, taps, bias, lengths, left, silu and not wanted)
    return F.silu(y) if silu and wanted else y


def relative_attention(
    q_content: Tensor,
    q_position: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    context: tuple[int, int] | None = None,
) -> Tensor:
    """softmax((q_content·k + q_position·P(i - j)) / sqrt(K) + bias) values, over real keys: (B, T, H, K).

    Queries, keys and values (B, T, H, K), positions (2T - 1, H, K) of the distances T-1 ... -(T-1), mask (B, T),
    bias (B or 1, H or 1, T, T); context (left, right) as in ``nn.attention.Attention``. Queries that are padding give
    zeros, and so does an item without real frames. The backward pass takes B H T² numbers.
    """
    from seqformer.kernels.attention import relative_attention as attend

    B, T, H, _ = keys.shape
    left, right = (T if frames < 0 else frames for frames in context or (-1, -1))
    bias = None if bias is None else bias.expand(B, H, T, T)
    return attend(q_content, q_position, keys, values, positions, bias, mask.sum(dim=1), left, right)[0]


def add_layer_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    factor: float = 1.0,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """LayerNorm of x + factor y over the last axis, and that times ``scale`` plus ``shift``, or None without them.

    x, y (B, T, D), the others (D,): what a post-norm block does between two branches. The first has the dtype of the
    sum, the second that of y.
    """
    from seqformer.kernels.layer_norm import add_layer_norm as norm

    out, scaled = norm(x, y, weight, bias, scale, shift, factor, eps)
    return out, None if scale is None else scaled
