"""Timing things fairly: in turns, in one process, beside what this machine does at best.

Times are of the processor on a CPU with one thread, so that other programs change them little, of the wall with
several threads, and of CUDA events on a GPU. Every round times every case once, in an order of its own, and with them
the two ceilings: a product of square matrices and a copy. A ratio is the median of the ratios within a round.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.setting import Setting

LEAST_SECONDS = 0.02  # a shorter call is repeated until it takes so long, and what one takes is their mean


@dataclass(frozen=True)
class Case:
    """One way to do one piece of work: ``call`` does it once, ``what`` names it, ``who`` does it.

    The first case of a comparison is ours, which the others are measured against. A call does ``count`` of ``unit``
    (for a rate), ``flops`` floating point operations and moves at least ``bytes`` to and from memory, where known.
    ``pad_err`` is how far padding changes its result, ``peak`` asks for the memory it takes.
    """

    what: str
    who: str
    call: Callable[[], object]
    count: float = 0.0
    unit: str = ""
    flops: float = 0.0
    bytes: float = 0.0
    pad_err: float | None = None
    peak: bool = False
    wall: bool = False  # a disk or other processes do the work: only the wall's time counts
    before: Callable[[], object] | None = None  # done before each call, untimed; then a call is never repeated
    note: str = ""


@dataclass(frozen=True)
class Row:
    """What was found for a case; None where it was not asked for or has no meaning."""

    part: str
    what: str
    who: str
    ms: float  # median of the rounds
    ms_least: float
    ms_most: float
    ratio: float  # its time over ours; above 1 we are the faster
    rate: float | None
    unit: str
    gflop: float | None
    gemm_share: float | None  # of the ceiling, a product of square matrices in the same rounds
    copy_share: float | None  # of the ceiling, a copy in the same rounds
    peak_mb: float | None
    pad_err: float | None
    note: str


def seconds_of(call: Callable[[], object], device: str, wall: bool, loops: int = 1) -> float:
    """Seconds that one of ``loops`` calls takes."""
    if device == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
    clock = time.perf_counter if wall or device == "cuda" or torch.get_num_threads() > 1 else time.process_time
    began = clock()
    if device == "cuda":
        first.record()
    for _ in range(loops):
        call()
    if device == "cuda":
        last.record()
        torch.cuda.synchronize()
    events = device == "cuda" and not wall
    return (first.elapsed_time(last) / 1000 if events else clock() - began) / loops


def in_turns(cases: Sequence[Case], loops: Sequence[int], rounds: int, device: str, seed: int = 0) -> list[list[float]]:
    """Seconds of a call of each case in each round, within which it is repeated ``loops`` times."""
    found, order = [[] for _ in cases], random.Random(seed)
    for _ in range(rounds):
        gc.collect()
        for index in order.sample(range(len(cases)), len(cases)):
            if cases[index].before is not None:
                cases[index].before()
            found[index].append(seconds_of(cases[index].call, device, cases[index].wall, loops[index]))
    return found


def repeats(case: Case, setting: Setting) -> int:
    """How often a case is repeated within a round; this calls it once or twice, which warms it up."""
    once = seconds_of(case.call, setting.device, case.wall)
    if setting.quick or case.before is not None:
        return 1
    if once < LEAST_SECONDS:  # it may have been slow for being the first
        once = seconds_of(case.call, setting.device, case.wall)
    return max(1, round(LEAST_SECONDS / max(once, 1e-7)))


def ceilings(device: str, dtype: torch.dtype, size: int, megabytes: int) -> list[Case]:
    """The two things that hardware is made for, by the library that torch takes for them as the process is set."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    given = torch.zeros(megabytes * 2**18, device=device)  # of 4 bytes each
    taken = torch.empty_like(given)
    return [
        Case("ceiling", "gemm", lambda: torch.mm(a, b), flops=2.0 * size**3),
        Case("ceiling", "copy", lambda: taken.copy_(given), bytes=2.0 * given.nbytes),
    ]


def compare(part: str, cases: Sequence[Case], setting: Setting) -> tuple[list[Row], dict]:
    """Rows of cases that do the same work, ours first, and the ceilings found among them.

    A peer that fails when it is first called is left out.
    """
    loops = [repeats(cases[0], setting)]
    loops += [setting.tried(case.who, lambda case=case: repeats(case, setting)) for case in cases[1:]]
    cases, loops = zip(*((case, count) for case, count in zip(cases, loops, strict=True) if count), strict=True)
    best = ceilings(setting.device, setting.dtype, *((64, 1) if setting.quick else (1024, 128)))
    every = [*cases, *best], [*loops, *(repeats(case, setting) for case in best)]
    times = in_turns(*every, setting.rounds, setting.device)
    gemm, copy = (statistics.median(taken) for taken in times[-2:])
    ceiling = {"gemm_gflops": best[0].flops / gemm / 1e9, "copy_gbytes": best[1].bytes / copy / 1e9}
    gc.collect()  # what is freed in a call is to be of that call
    peaks = [peak_bytes(case.call, setting.device) if case.peak else None for case in cases]
    return rows_of(part, cases, times[: len(cases)], peaks, ceiling), ceiling


def rows_of(
    part: str, cases: Sequence[Case], times: list[list[float]], peaks: list[float | None], ceiling: dict
) -> list[Row]:
    """Medians, spread, ratios to the first case and shares of the ceilings."""
    rows = []
    for case, taken, peak in zip(cases, times, peaks, strict=True):
        median = statistics.median(taken)
        rows.append(
            Row(
                part,
                case.what,
                case.who,
                1000 * median,
                1000 * min(taken),
                1000 * max(taken),
                statistics.median(other / ours for other, ours in zip(taken, times[0], strict=True)),
                case.count / median if case.count else None,
                case.unit,
                case.flops / 1e9 if case.flops else None,
                case.flops / median / 1e9 / ceiling["gemm_gflops"] if case.flops else None,
                case.bytes / median / 1e9 / ceiling["copy_gbytes"] if case.bytes else None,
                None if peak is None else peak / 1e6,
                case.pad_err,
                case.note,
            )
        )
    return rows


def peak_bytes(call: Callable[[], object], device: str) -> float:
    """Most bytes of tensors that live at one moment of a call beyond those that lived before it.

    Counted at torch's allocator, so neither gaps between tensors nor what an operator's library takes for itself.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each use of the profiler writes two lines
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
