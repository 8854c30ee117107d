"""What a run says: one JSON line per step in log.jsonl, one plain line per epoch, a live bar on a terminal."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class RunLog:
    """Lines and bars of a run; a context manager. ``quiet`` keeps the file and drops the rest (other ranks, tests)."""

    def __init__(self, path: Path, quiet: bool = False):
        self.path, self.quiet = path, quiet
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        self.bar = Progress(*columns, console=self.console, transient=True, disable=quiet or not sys.stdout.isatty())
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "RunLog":
        self.file = open(self.path, "a", buffering=1)
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()
        self.file.close()

    def record(self, **values: Any) -> None:
        """One JSON line."""
        self.file.write(json.dumps(values) + "\n")

    def say(self, line: str) -> None:
        """One line for a person."""
        self.console.print(line, markup=False)

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of a name, making it on first use; a finished one goes away."""
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total, note=note)
        self.bar.update(self.tasks[name], completed=done, total=total, note=note)
        if done >= total:
            self.bar.remove_task(self.tasks.pop(name))

    def epoch(self, fold: str, done: int, total: int, meter: "Meter") -> None:
        """The line of an epoch."""
        self.say(f"fold {fold}  epoch {done}/{total}  {meter.line()}")
        self.progress(f"fold {fold} epochs", done, total)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A small table, numbers to the right."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def drop_records_after(path: Path, fold: str, step: int) -> None:
    """Forget the lines of a fold beyond the step it resumes from, and a last line a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("fold") != fold or record.get("step", 0) <= step:
            kept.append(line + "\n")
    path.write_text("".join(kept))


class Meter:
    """Means over the steps of an epoch, and what validation found, for its one line."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.notes: dict[str, float | None] = {}
        self.steps = 0
        self.last: dict[str, float] = {}
        self.start = time.perf_counter()

    def add(self, **values: float) -> None:
        """The values of one step; a step without a finite gradient counts for nothing."""
        self.last = values
        if math.isfinite(values["grad_norm"]):
            self.steps += 1
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def note(self, **values: float | None) -> None:
        self.notes |= values

    def mean(self, name: str) -> float:
        return self.sums.get(name, 0.0) / max(self.steps, 1)

    def line(self) -> str:
        parts = [f"loss {self.mean('loss'):.4g}"]
        parts += [f"{name} {value:.4g}" for name, value in self.notes.items() if value is not None]
        parts += [f"lr {self.last.get('lr', 0):.2e}", f"grad {self.mean('grad_norm'):.3g}"]
        parts += [f"{compact(self.mean('frames_per_s'))} frames/s"]
        parts += [f"{name} {self.mean(name):.1%}" for name in ("padding", "wait", "mfu")]
        if self.sums.get("infeasible"):
            parts.append(f"infeasible {self.sums['infeasible']:.0f}")
        return "  ".join([*parts, f"{time.perf_counter() - self.start:.1f} s"])


def compact(value: float) -> str:
    """12.3k, 4.5M: a rate in four characters."""
    for unit in ("", "k", "M"):
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"
