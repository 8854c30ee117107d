"""Published checkpoints, read without running anything of theirs and without writing anything beside them.

What a stranger publishes is bytes: a ``.nemo`` archive (tar of a YAML, a pickled state dict and tokenizers) or a folder
(JSON, safetensors, tokenizers). Every name, link and size is checked before it is followed or allocated, nothing is
unpacked to disk, configs become plain data, and pickled weights go through the reader of state_dict.py, not through
pickle. Whatever is wrong with a file is one InputError that names it.
"""

import gzip
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from seqformer.errors import InputError, first_few
from seqformer.published.state_dict import MIB, naming, opened, plain_name, read_state_dict, shown, size_of

# Bytes read of a file; of a config few, as YAML takes up to 250 times its size while it is parsed.
MOST_CONFIG, MOST_FILE, MOST_FILES, MOST_WEIGHTS = MIB, 64 * MIB, 256 * MIB, 16 * 1024 * MIB
MOST_HEADER = 16 * MIB  # of a safetensors file; 40,000 tensors or so
MOST_MEMBERS, MOST_DEPTH = 1000, 64
MOST_RATIO, SLACK = 8, 64 * MIB  # weights hardly compress: honest archives unpack to 1.1 times their size
PIECE = 16 * 1024  # bytes read at once; no honest long name of a tar is near it

CONFIG, WEIGHTS, INDEX = "model_config.yaml", "model_weights.ckpt", "model.safetensors.index.json"
PICKLED = (".ckpt", ".bin", ".pt", ".pth")
SMALL = (".json", ".txt", ".model", ".vocab")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}


@dataclass(frozen=True)
class Published:
    """What a publisher's checkpoint holds: its config as plain data, its weights, the other small files by name."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, bytes]


def read_nemo(path: str | Path) -> Published:
    """A ``.nemo`` archive, a tar or tar.gz, in one pass. Raises InputError for anything odd in it."""
    files: dict[str, bytes] = {}
    with naming(path), opened(path) as file, tempfile.SpooledTemporaryFile(MOST_FILE) as weights:
        names = []
        for name, size, stream in _members(file):
            small = io.BytesIO()
            _copy(stream, size, weights if name == WEIGHTS else small)
            if name != WEIGHTS:
                files[name] = small.getvalue()
            names.append(name)
        for name in (CONFIG, WEIGHTS):
            if name not in names:
                raise InputError(f"has no {name} but {first_few(map(shown, names)) or 'nothing'}: is it a .nemo file?")
        with naming(CONFIG):
            config = _yaml(files.pop(CONFIG))
        with naming(WEIGHTS):
            return Published(config, read_state_dict(weights), files)


def read_folder(folder: str | Path) -> Published:
    """A Hugging Face folder: config.json, safetensors (or shards of it, or pytorch_model.bin), tokenizer files.

    Of the files beside these, JSON, text and tokenizer models are kept. A link may lead to another place in the folder,
    or from a snapshot of the hub's cache to that repository's blobs. Raises InputError for anything odd.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: has no config.json: is it a folder of a published model?")
    config = _json(_inside(folder, "config.json"), MOST_CONFIG)
    candidates = [name for name in ("model.safetensors", INDEX) if (folder / name).exists()]
    if not candidates and not (folder / "pytorch_model.bin").exists():
        raise InputError(f"{folder}: has no weights: neither model.safetensors nor pytorch_model.bin")
    if len(candidates) > 1:
        raise InputError(f"{folder}: holds both {' and '.join(candidates)}; remove one of them")
    if candidates == [INDEX]:
        weights = _shards(folder)
    else:  # a published pickle is a second choice, never a fall-back for safetensors that fail
        weights = read_weights(_inside(folder, *candidates or ["pytorch_model.bin"]))
    files, room = {}, MOST_FILES
    for name in sorted(path.name for path in folder.iterdir() if path.suffix in SMALL):
        if name not in ("config.json", INDEX):
            files[name] = _content(_inside(folder, name), min(MOST_FILE, room))
            room -= len(files[name])
    return Published(config, weights, files)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file, or of a torch checkpoint (.ckpt, .bin, .pt) that is a plain state dict.

    A dict with the key ``state_dict`` stands for what lies under it. Raises InputError for anything else.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with naming(path):
        if path.suffix not in PICKLED:
            raise InputError(f"weights end in .safetensors or {', '.join(PICKLED)}, not {shown(path.suffix)}")
        with opened(path) as file:
            return read_state_dict(file)


def _content(path: Path, most: int) -> bytes:
    with naming(path), opened(path) as file:
        if size_of(file) > most:
            raise InputError(f"is {size_of(file)} bytes, more than the {most} that are read of such a file")
        return file.read(most)


# ---- tar


class _Forward:
    """A stream that is read once, forwards, in small pieces, up to a limit: all that tarfile may do with a stranger's.

    tarfile trusts the sizes it reads: it takes a long name of gigabytes into memory, and goes back by a negative one.
    """

    def __init__(self, file: BinaryIO, most: int):
        self.file, self.most, self.place, self.last = file, most, 0, b""

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> None:
        if place < self.place:
            raise InputError("a member's size leads backwards")
        while self.place < place and self.read(min(PIECE, place - self.place)):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE:
            raise InputError(f"a header of {size} bytes, of at most {PIECE}")
        self.last = self.file.read(size)
        self.place += len(self.last)
        if self.place > self.most:
            raise InputError(f"unpacks to more than {self.most} bytes, {MOST_RATIO} times its size: a bomb?")
        return self.last


def _copy(stream: _Forward, size: int, target: BinaryIO) -> None:
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise InputError("is cut short")
        target.write(piece)
        size -= len(piece)


def _members(file: BinaryIO) -> Iterator[tuple[str, int, _Forward]]:
    """Base name, bytes, and the stream at their start, of each file in a tar; the caller reads them all."""
    most = MOST_RATIO * size_of(file) + SLACK
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = _Forward(gzip.GzipFile(fileobj=file, mode="rb") if compressed else file, most)
    seen, room = set(), MOST_FILES
    with tarfile.TarFile(fileobj=stream, mode="r") as tar:
        while (member := tar.next()) is not None:
            if len(tar.members) > MOST_MEMBERS:
                raise InputError(f"has more than {MOST_MEMBERS} members")
            name = plain_name(member.name).rpartition("/")[2]
            if member.type == tarfile.DIRTYPE and not member.size:
                continue
            what = f"member {shown(member.name)}"
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                raise InputError(f"{what} is not a file but a link, device or the like; pack its content instead")
            if name.lower() in seen or not name:
                raise InputError(f"{what} has no name, or one that is there already; pack each file once")
            limit = {CONFIG: MOST_CONFIG, WEIGHTS: MOST_WEIGHTS}.get(name, min(MOST_FILE, room))
            if not 0 <= member.size <= limit:
                raise InputError(f"{what} is {member.size} bytes, of at most {limit}")
            seen.add(name.lower())
            room -= 0 if name == WEIGHTS else member.size
            stream.seek(member.offset_data)
            yield name, member.size, stream
        if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a torn or broken header for the end
            raise InputError("is cut short, or damaged between two members")
        while stream.read(PIECE):
            if stream.last.strip(b"\0"):
                raise InputError("goes on after its end")


# ---- safetensors, JSON, YAML


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The library (0.8) refuses overlaps, holes, wrong sizes and unknown types; the two checks before it, it lacks."""
    from safetensors.torch import load_file

    with naming(path):
        with opened(path) as file:
            size, start = size_of(file), file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(MOST_HEADER, size - 8):
                raise InputError(f"is no safetensors file, or cut short: its header would be {length} of {size} bytes")
            _parsed(file.read(length))
        return load_file(path)


def _shards(folder: Path) -> dict[str, Tensor]:
    """Tensors of all shards, each of which holds exactly those that the index gives to it."""
    path = _inside(folder, INDEX)
    places = _json(path, MOST_HEADER).get("weight_map")
    wanted: dict[str, set[str]] = {}
    with naming(path):
        if type(places) is not dict or not places:
            raise InputError("has no weight_map")
        for name, shard in places.items():
            if type(shard) is not str or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard, re.ASCII):
                raise InputError(f"weight_map of {shown(name)} is {shown(str(shard))}, not a .safetensors beside it")
            wanted.setdefault(shard, set()).add(name)
    weights: dict[str, Tensor] = {}
    for shard, names in wanted.items():
        found = _safetensors(_inside(folder, shard))
        if differing := found.keys() ^ names:
            lacked = first_few(map(shown, sorted(differing)))
            raise InputError(f"{folder / shard}: it or the index lacks {lacked}; download both again")
        weights |= found
    return weights


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder, refused where it is a link that leads out of it."""
    path, home = folder / name, folder.resolve()
    roots = [home] + [home.parent.parent / "blobs"] * (home.parent.name == "snapshots")  # how the hub's cache is laid
    with naming(path):
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise InputError("is a link that leads out of its folder; copy the file there")
    return path


def _json(path: Path, most: int) -> dict[str, Any]:
    return plain_json(_content(path, most), path)


def plain_json(content: bytes, where: str | Path) -> dict[str, Any]:
    """A JSON object as a dict. Raises InputError naming ``where`` for anything else, a key that is there twice too."""
    with naming(where):
        return _parsed(content)


def _parsed(content: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InputError(f"repeats a key, of {first_few(map(shown, found))}")
        return found

    found = json.loads(content.decode(), object_pairs_hook=once)
    if type(found) is not dict:
        raise InputError(f"is JSON of a {type(found).__name__}, not of an object")
    return found


def _yaml(content: bytes) -> dict[str, Any]:
    """Plain data of a YAML file. A ``_target_`` or ``${...}`` in it is a string like any other, and stays one."""
    import yaml

    text, kind, depth = content.decode(), getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    for event in yaml.parse(text, kind):  # one by one, before the parser nests its own calls as deep as the file
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(f"line {event.start_mark.line + 1} has an anchor or alias; write the values out")
        if depth > MOST_DEPTH:
            raise InputError(f"line {event.start_mark.line + 1} is nested deeper than {MOST_DEPTH}")
        if (tag := getattr(event, "tag", None)) and tag not in _PLAIN_TAGS:
            raise InputError(f"line {event.start_mark.line + 1} has the tag {shown(tag)}; plain data needs none")
    constructor = yaml.SafeLoader("")

    def plain(node: Any) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [plain(item) for item in node.value]
        if isinstance(node, yaml.ScalarNode):  # a date or a lone `=` stays the text it is
            return constructor.construct_object(node) if node.tag in _PLAIN_TAGS else node.value
        found: dict = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or (name := plain(key)) in found:
                raise InputError(f"line {key.start_mark.line + 1} repeats a key, or has one that is no plain value")
            found[name] = plain(value)
        return found

    found = plain(yaml.compose(text, kind)) if text.strip() else None
    if type(found) is not dict:
        raise InputError(f"is YAML of a {type(found).__name__}, not of a mapping")
    return found
