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

from seqformer.checkpoint import write_file


class RunLog:
    """Lines and bars of a run; a context manager. ``quiet`` keeps the file and drops the rest; no ``path``, no file.

    ``bars`` False: lines only, where several processes share a terminal.

    The file is made by its first line, so that a run refused before has none.
    """

    def __init__(self, path: Path | None, quiet: bool = False, bars: bool = True):
        self.path, self.file = path, None
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        self.bar = Progress(
            *columns, console=self.console, transient=True, disable=not bars or quiet or not sys.stdout.isatty()
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()
        self._close()

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None

    def record(self, **values: Any) -> None:
        """One JSON line; what is not finite becomes null, for JSON has no word for it."""
        if self.path is None:
            return
        if self.file is None:
            self.file = open(self.path, "a", buffering=1)  # noqa: SIM115  open as long as the run
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.file.write(json.dumps(plain) + "\n")

    def forget(self, fold: str, step: int) -> None:
        """Drop the lines of a fold beyond the step it resumes from, and a last line that a kill cut short."""
        if self.path is None or not self.path.exists():
            return
        text = self.path.read_text(errors="replace")
        kept = "".join(line + "\n" for line in text.splitlines() if _holds(line, fold, step))
        if kept != text:
            self._close()
            write_file(self.path, kept)

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


def _holds(line: str, fold: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return record.get("fold") != fold or record.get("step", 0) <= step


class Meter:
    """Means over the steps of an epoch, and what validation found, for its one line."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.notes: dict[str, float | None] = {}
        self.steps, self.skipped = 0, 0
        self.last: dict[str, float] = {}
        self.start = time.perf_counter()

    def add(self, **values: float) -> None:
        """The values of one step; one without a finite gradient is counted apart."""
        self.last = values
        if not math.isfinite(values["grad_norm"]):
            self.skipped += 1
            return
        self.steps += 1
        padded = values["frames_per_s"] * values["seconds"] / max(1 - values["padding"], 1e-8)
        parts = dict.fromkeys(("frames_per_s", "wait", "mfu"), values["seconds"]) | {"padding": padded}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * parts.get(name, 1.0)
            self.weights[name] = self.weights.get(name, 0.0) + parts.get(name, 1.0)

    def note(self, **values: float | None) -> None:
        self.notes |= values

    def mean(self, name: str) -> float:
        """Of the steps: of rates and shares, that of all the seconds or padded frames together."""
        return self.sums.get(name, 0.0) / max(self.weights.get(name, 0.0), 1e-8)

    def line(self) -> str:
        parts = [f"loss {self.mean('loss'):.4g}"]
        parts += [f"{name} {value:.4g}" for name, value in self.notes.items() if value is not None]
        parts += [f"lr {self.last.get('lr', 0):.2e}", f"grad {self.mean('grad_norm'):.3g}"]
        parts += [f"{compact(self.mean('frames_per_s'))} frames/s"]
        parts += [f"{name} {self.mean(name):.1%}" for name in ("padding", "wait", "mfu")]
        for name in ("infeasible", "recompiles"):
            if self.sums.get(name):
                parts.append(f"{name} {self.sums[name]:.0f}")
        if self.skipped:
            parts.append(f"skipped {self.skipped} steps")
        return "  ".join([*parts, f"{time.perf_counter() - self.start:.1f} s"])


def compact(value: float) -> str:
    """12.3k, 4.5M: a rate in four characters."""
    for unit in ("", "k", "M"):
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"
