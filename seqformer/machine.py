"""Settings of the process that make a CPU faster for everything in it, peers included: only where one asks for them."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Literal

import torch

# Numbers of glibc's mallopt(3), and what is set: nothing is given back, and memory is asked for 64 MB at a time.
HEAP = {-4: 0, -1: 2**31 - 1, -2: 2**26}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD

_kept: dict[int, int] = {}  # what mallopt took, which cannot be asked for


def tune_cpu(
    threads: int | None = None, keep_memory: bool = True, matmul: Literal["fp32", "bf16"] | None = None
) -> dict[str, str]:
    """Change settings of this process and say what was changed, {setting: "before -> after"}; none is undone.

    ``threads`` of torch: by default as many as this process may use (its affinity and its container's quota; torch
    itself knows nothing of a quota), less where torch already has fewer. ``keep_memory`` tells glibc to keep freed
    memory: it otherwise asks the kernel for every large tensor afresh, and the first touch of each page costs more
    than most arithmetic on it. ``matmul`` is what oneDNN may compute float32 products in: ``bf16`` has them take
    oneDNN's way, with bfloat16's two to three digits where the CPU has AMX. Raises ValueError on threads below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected 1 or more")
    found, before = {}, torch.get_num_threads()
    after = min(before, usable_cores()) if threads is None else threads
    if after != before:
        torch.set_num_threads(after)
        found["threads"] = f"{before} -> {after}"
    if keep_memory and platform.libc_ver()[0] == "glibc" and not _kept:
        libc = ctypes.CDLL(None)
        _kept.update({name: value for name, value in HEAP.items() if libc.mallopt(name, value) == 1})
        found["freed memory"] = "given back -> kept"
    was = torch.backends.mkldnn.matmul.fp32_precision
    if matmul is not None and matmul != was:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee" if matmul == "fp32" else matmul
        found["float32 products"] = f"{was} -> {matmul}"
    return found


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may keep busy: at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return max(1, min(cores, int(share) // int(period)))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return cores
