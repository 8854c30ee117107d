"""Public corpora by HTTP, each archive resumed where it was cut and held against its published checksum.

Nothing else here touches the network, and nothing but ``seqformer download`` calls this.
"""

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from seqformer.errors import InputError, nearest

MIRROR = "https://www.openslr.org/resources"
BLOCK = 2**20  # bytes
PATIENCE = 60.0  # seconds without a byte


class Archive(NamedTuple):
    """One file of a corpus: its place below a mirror, and the MD5 published beside it."""

    place: str
    md5: str

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]


def _parts(resource: int, **sums: str) -> dict[str, Archive]:
    named = {part.replace("_", "-"): md5 for part, md5 in sums.items()}
    return {part: Archive(f"{resource}/{part}.tar.gz", md5) for part, md5 in named.items()}


# Checksums: md5sum.txt of https://www.openslr.org/resources/12, and the pages of 17, 28 and 31.
CORPORA = {
    "librispeech": _parts(
        12,
        dev_clean="42e2234ba48799c1f50f24a7926300a1",
        dev_other="c8d0bcc9cca99d4f8b62fcc847357931",
        test_clean="32fa31d27d2e1cad72775fee3f4849a9",
        test_other="fb5a50374b501bb3bac4815ee91d3135",
        train_clean_100="2a93770f6d5c6c964bc36631d331a522",
        train_clean_360="c0e676e450a7ff2f54aeade5171606fa",
        train_other_500="d1a0fd59409feb2c614ce4d30c387708",
    ),
    "mini_librispeech": _parts(
        31, dev_clean_2="6d7ab67ac6a1d2c993d050e16d61080d", train_clean_5="5df7d4e78065366204ca6845bb08f490"
    ),
    "musan": _parts(17, musan="0c472d4fc0c5141eca47ad1ffeb2a7df"),
    "rirs_noises": {"rirs-noises": Archive("28/rirs_noises.zip", "e6f48e257286e05de56413b4779d8ffb")},
}


def find_archive(corpus: str, part: str) -> Archive:
    """The file of one part. Raises InputError with the nearest name."""
    if corpus not in CORPORA:
        raise InputError(f"no corpus {corpus!r} to download; {nearest(corpus, CORPORA)}")
    if part not in CORPORA[corpus]:
        raise InputError(f"{corpus} has no part {part!r}; {nearest(part, CORPORA[corpus])}")
    return CORPORA[corpus][part]


def fetch(url: str, path: Path, md5: str, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Download to ``path``, whole and with the checksum ``md5``, or not at all; nothing to do where it is there.

    Bytes come into ``<name>.part``, where a later call goes on; of a server that cannot go on, it starts again.
    ``tell(bytes so far, of how many)`` is called as they come. Raises InputError, one line, when there is no
    connection, when it is lost, or when the disk is too small, the part kept each time; and when the checksum differs:
    then the file is renamed to ``<name>.wrong``.
    """
    if not re.match(r"https?://", url):
        raise InputError(f"{url}: expected an address that begins with http:// or https://")
    if path.exists():
        return _verify(path, path, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    answer = _connect(url, part)
    if answer is not None:
        with answer:
            _receive(answer, url, part, tell)
    _verify(part, path, md5)


def _connect(url: str, part: Path):
    """The answer of the server, asked for everything beyond the part; None when nothing is left to send."""
    start = part.stat().st_size if part.exists() else 0
    asked = {"User-Agent": "seqformer"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise InputError(f"{url}: the server says {error.code} {error.reason}; {_kept(part, start)}") from error
        total = _number(r"\*/(\d+)", error.headers.get("Content-Range"))
        if total not in (None, start):
            aside = part.rename(part.with_suffix(".wrong"))
            raise InputError(f"{part} is longer than {url}; renamed to {aside}; call again to start afresh") from error
        return None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise InputError(f"{url}: no connection ({reason}); {_kept(part, start)}") from error


def _receive(answer, url: str, part: Path, tell: Callable[[int, int], None]) -> None:
    """Append what comes to the part; from its first byte on where the server does not say that it goes on."""
    start = part.stat().st_size if part.exists() else 0
    goes_on = answer.status == 206 and _number(r"bytes (\d+)-", answer.headers.get("Content-Range")) == start
    if answer.status == 206 and not goes_on:
        raise InputError(f"{url}: the server sent another range than was asked for; {_kept(part, start)}")
    done, length = start if goes_on else 0, _number(r"(\d+)", answer.headers.get("Content-Length"))
    free, broken = shutil.disk_usage(part.parent).free + start - done, False
    if (length or 0) > free:
        raise InputError(f"{part.parent} has {_mb(free)} free, {part.name} needs {_mb(length)} more")
    total = None if length is None else done + length
    with open(part, "ab" if goes_on else "wb") as file:
        while not broken:
            try:
                block = answer.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                block, broken = getattr(error, "partial", b""), True
            if not block:
                break
            file.write(block)
            done += len(block)
            tell(done, total or done)
        file.flush()
        os.fsync(file.fileno())
    if broken or (total or 0) > done:
        of = f" of {_mb(total)}" if total else ""
        raise InputError(f"{url}: the connection was lost at {_mb(done)}{of}; {_kept(part, done)}")


def _verify(found: Path, path: Path, md5: str) -> None:
    """Give a complete file its name, or take it aside."""
    with open(found, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest == md5:
        os.replace(found, path)
        return
    aside = path.with_name(f"{path.name}.wrong")
    os.replace(found, aside)
    raise InputError(
        f"{path.name} has the MD5 {digest}, published is {md5}; renamed to {aside}; call again to start afresh"
    )


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a folder; members that would leave it are refused."""
    try:
        shutil.unpack_archive(path, folder, **({} if path.suffix == ".zip" else {"filter": "data"}))
    except (shutil.ReadError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error


def _number(pattern: str, text: str | None) -> int | None:
    found = re.search(pattern, text or "")
    return int(found[1]) if found else None


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _kept(part: Path, size: int) -> str:
    return f"call again to go on from {_mb(size)} in {part}" if size else "call again"
