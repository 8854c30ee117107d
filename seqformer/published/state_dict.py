"""A torch checkpoint's state dict, read without pickle: a pickle is a program, and this reader runs none of it.

torch.load is not called, as its safe mode was bypassed before (CVE-2025-32434, CVE-2026-24747). The opcodes are read
here; nothing that they name is imported, and all they can make is dicts, lists, plain values and tensors.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from seqformer.errors import InputError, first_few

MIB = 2**20
MOST_PICKLE, MOST_DIRECTORY = 64 * MIB, 4 * MIB  # bytes of data.pkl, and of the zip's list of entries
_STORAGES = {
    f"torch {kind}Storage": getattr(torch, dtype)
    for kind, dtype in {
        "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool",
        "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    }.items()
}  # fmt: skip
_CALLS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}


@dataclass(frozen=True)
class _Name:
    """What a pickle asks to import: a name here, looked up in a table of ours, never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    data: Tensor


def read_state_dict(file: BinaryIO) -> dict[str, Tensor]:
    """Tensors of a state dict in torch's zip format; each storage is read once, as tensors share it."""
    size, start = size_of(file), file.read(4)
    if start != b"PK\3\4":
        kind = "a bare pickle" if start[:1] == b"\x80" else "no zip file"
        raise InputError(
            f"is {kind}, not a checkpoint of torch >= 1.6; save it again with torch.save, or as safetensors"
        )
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        root, entries = _entries(archive, size)
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise InputError("holds big-endian numbers")
        loaded: dict[str, _Storage] = {}

        def storage(identity: Any) -> _Storage:
            kinds = [type(part) for part in identity] if type(identity) is tuple else None
            if kinds != [str, _Name, str, str, int] or identity[0] != "storage" or identity[1].text not in _STORAGES:
                raise InputError("its pickle asks for something other than a storage")
            key, dtype, numel = identity[2], _STORAGES[identity[1].text], identity[4]
            entry = entries.get(f"data/{key}")
            if entry is None or numel * dtype.itemsize != entry.file_size:
                raise InputError(f"storage {shown(key)} is missing in {root}/data, or not {numel} numbers of {dtype}")
            if key not in loaded:
                loaded[key] = _Storage(_storage_content(archive, entry).view(dtype))
            if loaded[key].data.dtype != dtype:
                raise InputError(f"storage {shown(key)} has two types")
            return loaded[key]

        found = _built(archive.read(entries["data.pkl"]), storage)
    if type(found) is dict and "state_dict" in found:
        found = found["state_dict"]
    if type(found) is not dict:
        raise InputError("holds no state dict (a dict of names and tensors)")
    odd = [str(name) for name, value in found.items() if type(name) is not str or not torch.is_tensor(value)]
    if odd or not found:
        raise InputError(f"holds no state dict: not a tensor: {first_few(map(shown, odd)) or 'nothing in it'}")
    return found


def _check_directory(file: BinaryIO, size: int) -> None:
    """zipfile reads a zip's directory whole and makes an object of each entry: bound it first."""
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")
    directory = struct.unpack("<L", tail[88:92])[0]
    if tail[56:60] == b"PK\6\7":
        directory = max(directory, struct.unpack("<Q", tail[40:48])[0])
    if tail[76:80] != b"PK\5\6" or tail[96:] != b"\0\0":
        raise InputError("is cut short, or damaged at its end")
    if directory > MOST_DIRECTORY:
        raise InputError(f"has a directory of {directory} bytes, of at most {MOST_DIRECTORY}")


def _entries(archive: zipfile.ZipFile, size: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The one folder of a torch zip, and its entries by their names in it."""
    entries, roots, seen = {}, set(), set()
    for entry in archive.infolist():
        name = plain_name(entry.orig_filename)
        root, _, inner = name.partition("/")
        if name.lower() in seen:
            raise InputError(f"entry {shown(name)} is there twice")
        if inner.startswith("code/") or inner == "constants.pkl":
            raise InputError("is a TorchScript program, which is code; save its state dict")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise InputError(f"entry {shown(name)} is compressed or encrypted, which torch.save does not do")
        seen.add(name.lower())
        roots.add(root)
        entries[inner] = entry
    if len(roots) != 1 or "data.pkl" not in entries:
        raise InputError("is a zip file but no torch checkpoint: it has no data.pkl, or more than one folder")
    if entries["data.pkl"].file_size > MOST_PICKLE or sum(entry.file_size for entry in entries.values()) > size:
        raise InputError(f"its entries are larger than the file, or data.pkl than {MOST_PICKLE} bytes")
    return roots.pop(), entries


def _storage_content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    content, done = torch.empty(entry.file_size, dtype=torch.uint8), 0
    view = memoryview(content.numpy())
    with archive.open(entry) as file:  # checks the entry's CRC at its end
        while done < len(view):
            read = file.readinto(view[done : done + MIB])
            if not read:
                raise InputError("is cut short")
            done += read
    return content


def _built(code: bytes, storage: Callable[[Any], _Storage]) -> Any:
    """What a pickle builds, with dicts, lists, tuples, strings, numbers and tensors as all there is.

    Values of a stranger's are compared by type only: to hash, print or compare what shares itself may take for ever.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        nonlocal stack
        items, stack = stack, marks.pop()
        return items

    for opcode, argument, _ in pickletools.genops(code):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(stack)
                stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _of(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if type(key) not in (str, int) or key in _of(dict, stack[-1]):
                        raise InputError("its pickle has a key twice, or one that is no string or integer")
                    stack[-1][key] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in _STORAGES.keys() | _CALLS:
                    asked = shown(argument.replace(" ", "."))
                    raise InputError(f"its pickle asks for {asked}, not for tensors; save the state dict alone")
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(_of(_Name, stack.pop()).text, _of(tuple, arguments)))
            case "BUILD":  # the attributes of an OrderedDict: _metadata, versions of modules
                stack.pop()
                _of(dict, stack[-1])
            case name:
                raise InputError(f"its pickle has the opcode {name}, which no state dict of tensors needs")
    if len(stack) != 1 or marks:
        raise InputError("its pickle does not end")
    return stack[0]


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        found, wanted = (name.__name__.strip("_").lower() for name in (type(value), kind))
        raise InputError(f"its pickle has a {found} in place of a {wanted}")
    return value


def _made(name: str, arguments: tuple) -> Any:
    """The result of one of the few calls in a state dict."""
    if name == "collections OrderedDict" and not arguments:
        return {}
    if name == "torch._utils _rebuild_parameter" and arguments and torch.is_tensor(arguments[0]):
        return arguments[0]
    if name == "torch._utils _rebuild_tensor_v2" and len(arguments) in (6, 7):
        storage, offset, size, stride = arguments[:4]
        data, sizes = _of(_Storage, storage).data, (offset, *_of(tuple, size), *_of(tuple, stride))
        whole = all(type(number) is int and 0 <= number < 2**48 for number in sizes)
        if whole and len(size) == len(stride) <= 64:
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            # more elements than the storage has are a stride of 0: small here, and vast where it is copied
            if math.prod(size) <= len(data) and (0 in size or last < len(data)):
                return data.as_strided(size, stride, offset)
        raise InputError("a tensor reaches beyond its storage, or has no proper shape")
    raise InputError(f"its pickle calls {name.replace(' ', '.')} in an odd way")


def shown(text: str) -> str:
    """A stranger's text in a message: escaped, and not long."""
    return repr(text[:60]) + ("..." if len(text) > 60 else "")


@contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Put the name of what is read before an error, in one line.

    The libraries below were not written for hostile bytes: whatever they raise for them means that the file is bad.
    """
    try:
        yield
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error)
        if not isinstance(error, (InputError, OSError)):
            text = f"is damaged, or not what its name says ({type(error).__name__}: {text[:200]})"
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        raise InputError(f"{what}: {text}") from error


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    if Path(path).exists() and not Path(path).is_file():  # to open a pipe would wait for ever
        raise InputError("is not a file")
    with open(path, "rb") as file:
        yield file


def size_of(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def plain_name(name: str) -> str:
    """A member's name without ``./``. Raises InputError where it could lead elsewhere or hide something."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":" or not name.isprintable():
        raise InputError(f"member {shown(name)} is not a plain relative name; no honest archive has one")
    return "/".join(parts)
