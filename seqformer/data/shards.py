"""Tar archives of audio, read where they lie: one index of their members, then any row by one seek.

The layout is that of WebDataset: in uncompressed ``*.tar`` files, members ``<key>.<ending>`` of one key are one item:
its audio, and its text in ``<key>.txt`` or under ``text`` in ``<key>.json``.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seqformer.data.audio import Span, audio_facts
from seqformer.data.corpus import Faults, find_files
from seqformer.errors import InputError, first_few

AUDIO = ("flac", "wav", "opus", "ogg", "mp3")
OURS = ("id", "path", "row", "offset", "bytes", "frames", "rate")  # columns that no JSON may fill


class Member(NamedTuple):
    """One file in an archive."""

    archive: Path
    key: str  # its path up to the first dot of its name
    ending: str
    span: Span


def index_shards(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Manifest rows of all items of the archives below a folder, in the order of archives and members.

    ``path`` is relative to the folder of ``out`` where it lies inside. Plain values of a JSON beside ``text`` become
    columns. Raises InputError, one line, when an archive is cut short or none at all, and naming each item without
    audio or text, with two of one, with audio that cannot be read, or in two archives.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the .tar files")
    archives = find_files(folder, [".tar"])
    if not archives:
        packed = first_few(path.name for path in find_files(folder, [".tar.gz", ".tgz", ".tar.zst", ".tar.bz2"]))
        raise InputError(f"{folder} has no .tar file{f'; decompress {packed}' if packed else ''}")
    faults, rows, seen = Faults(folder), [], {}
    for archive in archives:
        items: dict[str, list[Member]] = {}
        for member in members(archive):
            items.setdefault(member.key, []).append(member)
        for key, parts in items.items():
            if key in seen:
                faults.add("key in two archives", key, archive, f"also {seen[key].relative_to(folder)}")
                continue
            seen[key] = archive
            row = _row(key, parts, faults)
            if row is not None:
                rows.append({"id": key, "path": _place(archive, out)} | row)
    faults.check()
    if not rows:
        raise InputError(f"{folder}: no member of {len(archives)} archives ends with {', '.join(AUDIO)}")
    return rows


def members(archive: Path) -> Iterator[Member]:
    """Files of an archive, but hidden ones. Raises InputError when it is compressed, damaged or cut short."""
    try:
        with tarfile.open(archive, "r:") as opened:
            for info in opened:
                folder, _, name = info.name.removeprefix("./").rpartition("/")
                if info.issym() or info.islnk():
                    raise InputError(f"{archive}: {info.name} is a link; store the file itself")
                if info.isfile() and not name.startswith((".", "__")):
                    key, _, ending = name.partition(".")
                    span = (info.offset_data, info.size)
                    yield Member(archive, f"{folder}/{key}" if folder else key, ending.lower(), span)
            end = opened.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = "cut short" if "end of data" in str(error) else f"no uncompressed tar archive ({error})"
        raise InputError(f"{archive}: {reason}") from error
    _check_end(archive, end)


def _check_end(archive: Path, end: int) -> None:
    """An archive ends with blocks of zeros. Without one it was cut between two members, which no reader notices."""
    with open(archive, "rb") as file:
        file.seek(end)
        mark = file.read(512)
        if len(mark) < 512:
            raise InputError(f"{archive}: cut short: it has no end mark at byte {end}")
        if mark.strip(b"\0"):
            raise InputError(f"{archive}: damaged: no member begins at byte {end}")
        while block := file.read(2**20):
            if block.strip(b"\0"):
                raise InputError(f"{archive}: more follows its end mark at byte {end}; archives may not be joined")


def _row(key: str, parts: list[Member], faults: Faults) -> dict[str, Any] | None:
    """The columns of one item beside its id and path; None when something is wrong with it, which is noted."""
    archive, kinds = parts[0].archive, [part.ending for part in parts]
    audio = [part for part in parts if part.ending in AUDIO]
    twice = len(audio) > 1 or len(kinds) > len(set(kinds))
    if twice or not audio:
        kind = "key with two files of a kind" if twice else "no audio"
        faults.add(kind, key, archive, first_few(kinds, 5))
        return None
    try:
        said = _said({part.ending: part for part in parts})
        return {"offset": audio[0].span[0], "bytes": audio[0].span[1]} | audio_facts(archive, audio[0].span) | said
    except InputError as error:
        faults.add("item that cannot be used", key, archive, str(error).removeprefix(f"{archive} "))
        return None


def _said(parts: dict[str, Member]) -> dict[str, Any]:
    """Text and further columns of an item."""
    found: dict[str, Any] = {}
    try:
        if "json" in parts:
            found = json.loads(_read(parts["json"]))
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        if "txt" in parts:
            found["text"] = _read(parts["txt"])
    except ValueError as error:  # of JSON and of UTF-8
        raise InputError(f"its text cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found.get("text"), str) or not found["text"].strip():
        raise InputError("no text: neither a .txt nor a .json with a field text")
    plain = {
        name: value for name, value in found.items() if name not in OURS and type(value) in (str, int, float, bool)
    }
    return plain | {"text": " ".join(found["text"].split())}


def _read(member: Member) -> str:
    with open(member.archive, "rb") as file:
        file.seek(member.span[0])
        return file.read(member.span[1]).decode("utf-8-sig")


def _place(archive: Path, out: Path) -> str:
    """An archive's path for a manifest at ``out``."""
    whole, folder = archive.resolve(), out.parent.resolve()
    return os.path.relpath(whole, folder) if whole.is_relative_to(folder) else str(whole)
