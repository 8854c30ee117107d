"""Folds trained at the same time, a process each: for models so small that one alone leaves the device idle.

A fold is the same function of config and rows in a process of its own, so the results are those of one after another,
bit for bit. While it trains it logs to ``fold<k>/log.jsonl``; these lines move to the run's log.jsonl when all are
done, or when the run is taken up again.
"""

import importlib.util
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from seqformer.checkpoint import write_file
from seqformer.errors import InputError, first_few


def train_in_parallel(
    train: Callable[[str], None], names: list[str], most: int, threads: int | None, say: Callable[[str], None]
) -> None:
    """Call ``train(name)`` in a process for each name, ``most`` of them at a time, each with its share of the cores.

    Fresh processes, for neither a GPU nor polars' threads outlive a fork; ``train`` must be picklable. Raises
    InputError when folds have failed, after all others have come to their end.
    """
    context, running, failed, left = multiprocessing.get_context("spawn"), {}, {}, list(names)
    threads = threads or max(1, (os.cpu_count() or 1) // most)
    try:
        while left or running:
            while left and len(running) < most:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(train, left[0], threads, _plugins(), theirs))
                process.start()
                theirs.close()
                running[process.sentinel] = (left.pop(0), process, ours)
            for sentinel in wait(list(running)):
                name, process, ours = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    failed[name] = ours.recv() if ours.poll() else f"its process ended with code {process.exitcode}"
                    say(f"fold {name}: {failed[name]}")
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.join()
    if failed:
        lines = [f"fold {name}: {line}" for name, line in failed.items()]
        raise InputError(f"{len(failed)} of {len(names)} folds failed: {first_few(lines)}; the others are kept")


def _child(train: Callable[[str], None], name: str, threads: int, plugins: dict[str, str], answer: Connection) -> None:
    """Train one fold. Its fault is one line to the parent; without a parent it ends, or a resumed run would meet it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    for module, path in plugins.items():
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    try:
        train(name)
    except (InputError, OSError) as error:
        answer.send(" ".join(str(error).split()))
        sys.exit(2)
    except Exception as error:
        answer.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _plugins() -> dict[str, str]:
    """{module: file} of what a competition has registered its own parts by."""
    return {
        name: module.__file__
        for name, module in list(sys.modules.items())
        if name.startswith("competitions.") and name.endswith(".plugin") and getattr(module, "__file__", None)
    }


def gather_logs(log: Path, folders: dict[str, Path]) -> None:
    """Move what folds have logged for themselves, {fold: folder}, to the run's ``log``, in their order."""
    parts = {name: folder / "log.jsonl" for name, folder in folders.items() if (folder / "log.jsonl").is_file()}
    if not parts:
        return
    kept = [line for line in _lines(log) if _fold(line) not in parts]
    write_file(log, "".join(line + "\n" for line in kept + [line for path in parts.values() for line in _lines(path)]))
    for path in parts.values():
        path.unlink()


def begin_log(log: Path, name: str, folder: Path) -> Path:
    """The log of a fold in its own folder, begun with what the run's has of it; gathered before, so it has none."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line + "\n" for line in _lines(log) if _fold(line) == name]
    write_file(folder / "log.jsonl", "".join(lines))
    return folder / "log.jsonl"


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _fold(line: str) -> str | None:
    try:
        return json.loads(line).get("fold")
    except ValueError:  # cut short by a kill
        return None
