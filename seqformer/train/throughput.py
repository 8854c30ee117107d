"""How far a step is from what the device can do."""

import copy
import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqformer.batch import Batch


class StepFlops(NamedTuple):
    """FLOPs of a training step over a batch: ``a`` T + ``b`` T^2 of each item of T frames, and ``shared`` times the
    longest T, of what all items have in common (the projected table of relative positions)."""

    a: float
    b: float
    shared: float

    def of(self, lengths: torch.Tensor) -> float:
        """Of a batch with items of ``lengths`` (B,), without its padding."""
        lengths = lengths.double()
        return float((self.a * lengths + self.b * lengths**2).sum() + self.shared * lengths.max())


def model_flops(model: nn.Module, batch: Batch) -> StepFlops:
    """What the mathematics of a step needs, forward and backward, of all but the loss, one multiply-add being two.

    Recomputation, and work on padding, are not in it. Counted by torch for one item like the batch's and for two, at
    two lengths, by the plain operators on tensors that hold nothing: no kernel runs, and which one does in training
    does not change the count.
    """
    frames = max(2, batch.mask.shape[1])
    plain = copy.deepcopy(model).to("meta").eval()  # a copy is not compiled
    one, two = ([_step_flops(plain, batch, items, length) for length in (frames // 2, frames)] for items in (1, 2))
    half, whole = two[0] - one[0], two[1] - one[1]
    lengths = torch.tensor([[f, f**2] for f in (frames // 2, frames)], dtype=torch.float64)
    a, b = torch.linalg.solve(lengths, torch.tensor([half, whole], dtype=torch.float64)).tolist()
    return StepFlops(*((a, b) if b > 0 else (whole / frames, 0.0)), (one[1] - whole) / frames)


def _step_flops(model: nn.Module, batch: Batch, items: int, frames: int) -> float:
    inputs = {name: _resized(tensor, batch.axes.get(name, "T"), items, frames) for name, tensor in batch.inputs.items()}
    mask = torch.ones(items, frames, dtype=torch.bool, device="meta")
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        found = model(inputs, mask)
        sum(logits.float().sum() for logits in found.values()).backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _convolution_backward(grad_shape, x_shape, w_shape, *arguments, out_shape=None) -> int:
    """Each gradient costs what the convolution does; torch's own formula forgets the groups of the weight's."""
    transposed, wanted = arguments[4], arguments[7]
    points = (x_shape if transposed else grad_shape)[2:]
    return 2 * x_shape[0] * math.prod(points) * math.prod(w_shape) * sum(wanted[:2])


def _resized(tensor: torch.Tensor, axes: str, items: int, frames: int) -> torch.Tensor:
    """As the tensor on the meta device, with so many items and frames; what the host reads keeps its numbers."""
    if "H" in axes:
        return tensor[:1].expand(items, *tensor.shape[1:])
    sizes = [items, *tensor.shape[1:]]
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
    for _ in range(16):  # the best of them: other work on the machine is no limit of the device
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
