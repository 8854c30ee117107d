"""Writing a folder whole or not at all."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seqformer.errors import InputError


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """A fresh folder to write into; it takes the place of ``folder`` when the block ends well, and else is removed.

    What a killed process left behind is removed by the next one that writes the same folder: a lock, which dies with
    its process, tells leftovers from work in progress. Raises InputError when ``folder`` is a file or being written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a folder is to be written there")
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("partial", "old.partial"))
    try:
        partial.mkdir()
    except FileExistsError as error:
        raise InputError(f"{folder} is being written already, at {partial}") from error
    lock = _lock(partial)
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        _sync(folder.parent)
    finally:
        if lock is not None:
            os.close(lock)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # removes only an empty one: what is left after a failure
                parent.rmdir()


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        lock = _lock(leftover)
        if lock is not None:
            os.close(lock)
            shutil.rmtree(leftover, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, to be closed, or None when another writer holds it (or there are no locks: on Windows)."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
