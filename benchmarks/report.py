"""A run of the benchmarks: its parts, a JSON file of all that was found, and tables for a README."""

import gc
import importlib
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.measure import Row, compare
from benchmarks.setting import Setting

# Each is a file beside this one, whose ``cases(setting)`` gives lists of cases to compare.
PARTS = (
    "encoders", "attention", "depthwise", "norms", "logmel", "ctc", "transducer", "decode", "wer", "audio", "pipeline",
    "step", "streaming", "lengths",
)  # fmt: skip


def measure(parts: Sequence[str], setting: Setting, say: Callable[[str], None] = print) -> dict:
    """All that a JSON of a run holds; each table is said as soon as it is there."""
    torch.set_num_threads(setting.threads)
    rows: list[Row] = []
    found = about(setting) | {"parts": list(parts), "ceilings": [], "absent": setting.absent}
    say(
        f"{found['device']}, {setting.threads} threads, {setting.precision}, torch {torch.__version__}, {found['date']}"
    )
    gc.freeze()  # what is there by now need not be searched for garbage before every round
    for part in parts:
        for cases in importlib.import_module(f"benchmarks.{part}").cases(setting):
            new, ceiling = compare(part, cases, setting)
            found["ceilings"].append({"part": part, "what": cases[0].what} | ceiling)
            rows += new
            say(f"\n{table(new)}")
    gc.unfreeze()
    found["rows"] = [asdict(row) for row in rows]
    return found


def about(setting: Setting) -> dict:
    """Where and when, and by what."""
    root = Path(__file__).parents[1]
    asked = {name: value for name, value in vars(setting).items() if name not in ("absent", "manifest")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else processor(),
        "threads": setting.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": revision(root),
        "setting": asked | {"manifest": setting.manifest and str(setting.manifest)},
    }


def revision(folder: Path) -> str | None:
    """The commit of a checkout, and whether it was changed since; None where git knows nothing of it."""
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The processor's name, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: Sequence[Row]) -> str:
    """Markdown, with the columns of which there is something to say."""
    shown = {
        f"{rows[0].part}: {rows[0].what}": lambda row: row.who,
        "ms": lambda row: short(row.ms),
        "spread": lambda row: f"{(row.ms_most - row.ms_least) / row.ms:.0%}",
        "ratio": lambda row: f"{row.ratio:.2f}",
        rows[0].unit or "rate": lambda row: row.rate and short(row.rate),
        "GFLOP": lambda row: row.gflop and f"{row.gflop:,.1f}",
        "of GEMM": lambda row: row.gemm_share and f"{row.gemm_share:.0%}",
        "of copy": lambda row: row.copy_share and f"{row.copy_share:.0%}",
        "peak MB": lambda row: row.peak_mb and f"{row.peak_mb:,.0f}",
        "padding": lambda row: None if row.pad_err is None else f"{row.pad_err:.0e}",
        "note": lambda row: row.note,
    }
    cells = {name: [show(row) or "" for row in rows] for name, show in shown.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    lines = [list(cells), ["---"] + ["---:"] * (len(cells) - 1), *zip(*cells.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def write(found: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
