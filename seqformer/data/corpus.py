"""A folder of raw files: what lies in it, and all that is wrong with it told in one line."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from seqformer.errors import InputError, first_few

AUDIO = (".flac", ".opus", ".wav")


def find_files(root: Path, endings: Iterable[str] = AUDIO) -> list[Path]:
    """Files anywhere below a folder with one of the endings, sorted; hidden ones (``._*`` of macOS) left out."""
    found, endings = [], tuple(ending.lower() for ending in endings)
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.lower().endswith(endings) and not name.startswith(".")]
    return sorted(found)


class Faults:
    """Everything found wrong with a folder of raw files, by kind, to be told in one line."""

    def __init__(self, root: Path):
        self.root = root
        self.found: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str, path: Path | None = None, reason: object = "") -> None:
        """Note one fault of row ``name`` in the file at ``path``; ``reason`` may be an error that names the file."""
        words = str(reason).removeprefix(f"{path}: ")
        place = ": ".join(filter(None, [str(path.relative_to(self.root)) if path else "", words]))
        self.found[kind].append(f"{name} ({place})" if place else name)

    def check(self) -> None:
        """Raise one InputError that counts each kind and names its first rows and files; nothing if all is well."""
        kinds = [f"{kind} ({len(rows)}): {first_few(rows)}" for kind, rows in self.found.items()]
        if kinds:
            raise InputError(f"{self.root}: {'; '.join(kinds)}. Mend or remove them, then prepare again")
