"""How far a step is from what the device can do."""

import copy
import math
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqformer.batch import Batch


def model_flops(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """(a, b): a training step over an item of T frames costs a T + b T^2 FLOPs, one multiply-add being two.

    What the mathematics needs, forward and backward, of all but the loss: recomputation, and work on padding, are not
    in it. Counted by torch at two lengths of the first item of a batch, in one forward and one backward, by the plain
    operators on tensors that hold nothing: no kernel runs, and which one does in training does not change the count.
    """
    frames = max(2, batch.mask.shape[1])
    plain = copy.deepcopy(model).to("meta").eval()  # a copy is not compiled
    half, whole = (_step_flops(plain, batch, length) for length in (frames // 2, frames))
    lengths = torch.tensor([[f, f**2] for f in (frames // 2, frames)], dtype=torch.float64)
    a, b = torch.linalg.solve(lengths, torch.tensor([half, whole], dtype=torch.float64)).tolist()
    return (a, b) if b > 0 else (whole / frames, 0.0)


def _step_flops(model: nn.Module, batch: Batch, frames: int) -> float:
    item = {name: _resized(tensor[:1], batch.axes.get(name, "T"), frames) for name, tensor in batch.inputs.items()}
    mask = torch.ones(1, frames, dtype=torch.bool, device="meta")
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        found = model(item, mask)
        sum(logits.float().sum() for logits in found.values()).backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _convolution_backward(grad_shape, x_shape, w_shape, *arguments, out_shape=None) -> int:
    """Each gradient costs what the convolution does; torch's own formula forgets the groups of the weight's."""
    transposed, wanted = arguments[4], arguments[7]
    points = (x_shape if transposed else grad_shape)[2:]
    return 2 * x_shape[0] * math.prod(points) * math.prod(w_shape) * sum(wanted[:2])


def _resized(tensor: torch.Tensor, axes: str, frames: int) -> torch.Tensor:
    """As the tensor on the meta device, with so many frames."""
    sizes = list(tensor.shape)
    for axis, kind in enumerate(axes[: tensor.dim() - 1], start=1):
        sizes[axis] = frames if kind == "T" else sizes[axis]
    return torch.empty(sizes, dtype=tensor.dtype, device="meta")


def matmul_speed(device: torch.device, precision: str) -> float:
    """FLOPs per second of a large matrix product on this device in this precision: the ceiling that MFU is a share of.

    Measured, so that it holds for any device; makers' peak figures are somewhat higher.
    """
    size = 8192 if device.type == "cuda" else 768
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, best = torch.ones(size, size, device=device, dtype=dtype), float("inf")
    synchronize = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
