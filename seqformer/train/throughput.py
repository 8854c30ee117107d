"""How far a step is from what the device can do."""

import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqformer.batch import Batch


def model_flops(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """(a, b): a forward pass over T frames costs a T + b T^2 FLOPs, one multiply-add being two.

    Counted by torch at two lengths of the first item of a batch. Attention goes through the plain kernel for it,
    because torch's counter does not know every fused one.
    """
    frames = batch.mask.shape[1]

    def count(length: int) -> float:
        device = next(model.parameters()).device
        item = {name: tensor[:1].to(device) for name, tensor in batch.inputs.items()}
        for name, tensor in item.items():
            for axis, kind in enumerate(batch.axes.get(name, "T")[: tensor.dim() - 1], start=1):
                item[name] = item[name].narrow(axis, 0, length) if kind == "T" else item[name]
        mask = torch.ones(1, length, dtype=torch.bool, device=device)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(item, mask)
        return float(counter.get_total_flops())

    was_training = model.training
    model.eval()
    with torch.no_grad():
        half, whole = count(max(1, frames // 2)), count(frames)
    model.train(was_training)
    lengths = torch.tensor([[f, f**2] for f in (max(1, frames // 2), frames)], dtype=torch.float64)
    a, b = torch.linalg.solve(lengths, torch.tensor([half, whole], dtype=torch.float64)).tolist()
    return (a, max(0.0, b)) if frames > 1 else (whole, 0.0)


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
