"""The command that finds the largest batch a config can train with."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqformer.errors import InputError

if TYPE_CHECKING:
    from seqformer.train.budget import Trial


def plan(
    config: Annotated[Path, typer.Argument(help="A run's YAML, such as configs/demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory to stay within; 95 % of a GPU by default.")] = None,
    root: Annotated[Path, typer.Option(help="Where run folders are, of a teacher or init_from.")] = Path("runs"),
) -> None:
    """Find the largest batch budget that fits memory, by training on the worst batches; no run folder is touched."""
    from seqformer.config import build_config, read_config
    from seqformer.train.budget import GIB, find_budget

    if memory_gib is not None and not 0 < memory_gib < 2**20:
        raise InputError(f"--memory-gib {memory_gib:g}: expected GiB above 0")
    plain = read_config(config, overrides or [])
    data, limit = build_config(plain).data, None if memory_gib is None else round(memory_gib * GIB)
    key, start = ("batch_frames", data.batch_frames) if data.batch_frames else ("batch_seconds", data.batch_seconds)
    best, unit = None, "frames" if data.batch_frames else "s"
    for trial in find_budget(partial(in_child, plain, key, root, limit), start, whole=key == "batch_frames"):
        typer.echo(line_of(trial, key))
        best = max((one for one in (best, trial) if one and one.fits), key=lambda one: one.budget, default=None)
    if best is None:
        raise InputError(f"{config}: no budget fits, not even that of {trial.budget:g} {unit}: one row is too much")
    typer.echo(f"largest that fits: data.{key}={best.budget:g}")


def line_of(trial: "Trial", key: str) -> str:
    from seqformer.train.budget import GIB

    peak = "no memory" if trial.peak is None else f"{trial.peak / GIB:.2f} GiB"
    speed = "" if trial.peak is None else f"  {trial.frames_per_s:,.0f} frames/s"
    verdict = "fits" if trial.fits else "too much"
    return (f"{key} {trial.budget:<8g} {trial.batches:>7,} batches an epoch  padding {trial.padding:.1%}  "
            f"{peak:>10}  {verdict}{speed}")  # fmt: skip


def in_child(plain: dict[str, Any], key: str, root: Path, limit: int | None, budget: float) -> "Trial":
    """A trial in a process of its own: its peak is that of the budget alone, and it may run out of memory and die."""
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    from seqformer.config import build_config, changed_config
    from seqformer.train.budget import Trial

    changed = changed_config(plain, {f"data.{key}": budget})
    build_config(changed)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_attempt, changed, root, limit).result()
        except BrokenProcessPool:
            return Trial(budget, 0, float("nan"), float("nan"), None, False)


def _attempt(plain: dict[str, Any], root: Path, limit: int | None) -> "Trial":
    from seqformer.cli import load_competition
    from seqformer.config import build_config
    from seqformer.train.budget import try_budget

    load_competition(plain.get("competition"))
    return try_budget(build_config(plain), root, limit)
