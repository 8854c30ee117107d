"""Checkpoints that survive a kill at any moment, without pickle.

A checkpoint is a folder: ``model.safetensors`` (the weights to use, averaged ones where there are), then
``optim.safetensors`` (optimiser state and, beside averaged weights, the raw ones), and last ``state.json`` with the
SHA-256 of both and of itself. It is written under another name, flushed to disk, and renamed; ``find_checkpoint`` takes
the newest that verifies.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from seqformer.errors import InputError

FORMAT = 1
FILES = ("model.safetensors", "optim.safetensors")
_SUFFIXES = ("", ".new", ".old")


def write_file(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename: the file is old or new, never between.

    Raises InputError naming the file when it cannot be written (a full disk, a folder without permission).
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary name to write a file to; it takes the place of ``path`` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    with _cleanup(path, partial):
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


@contextmanager
def _cleanup(path: Path, partial: Path) -> Iterator[None]:
    """A failure to write ``path`` leaves no half-written ``partial`` and becomes one line that names the file."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    folder: Path, model: Mapping[str, Tensor], optim: Mapping[str, Tensor], state: dict[str, Any]
) -> None:
    """Replace the checkpoint at ``folder``. Whenever the process dies, ``find_checkpoint`` has the old one or this one.

    Raises InputError, with the old one as it was, when the disk does not take it.
    """
    new, old = (folder.with_name(folder.name + suffix) for suffix in (".new", ".old"))
    if old.exists():  # a kill came between the two renames below: settle which copy counts before reusing the names
        find_checkpoint(folder)
    with _cleanup(folder, new):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        hashes = {}
        for name, tensors in zip(FILES, (model, optim), strict=True):
            content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
            hashes[name] = hashlib.sha256(content).hexdigest()
            write_file(new / name, content)
        sealed = {"format": FORMAT, "files": hashes} | state
        write_file(new / "state.json", json.dumps(sealed | {"seal": _seal(sealed)}, indent=1) + "\n")
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> dict[str, Any] | None:
    """State of the newest checkpoint that verifies, put in place at ``folder`` with leftovers removed.

    None when there is none yet. ``.new`` is complete only when a kill came after its state.json, ``.old`` is what was
    there before. Raises InputError when there was one and none verifies: a kill cannot do that, a disk can.
    """
    found = [(suffix, state) for suffix in _SUFFIXES if (state := verify(folder.with_name(folder.name + suffix)))]
    if not found:
        if folder.exists() or folder.with_name(folder.name + ".old").exists():
            raise InputError(
                f"the checkpoint at {folder} is damaged; put back a copy of it, or remove it to start again"
            )
        shutil.rmtree(folder.with_name(folder.name + ".new"), ignore_errors=True)
        return None
    suffix, state = max(found, key=lambda pair: (pair[1]["step"], -_SUFFIXES.index(pair[0])))
    if suffix:
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(folder.with_name(folder.name + suffix), folder)
        sync_folder(folder.parent)
    for other in _SUFFIXES[1:]:
        shutil.rmtree(folder.with_name(folder.name + other), ignore_errors=True)
    return state


def verify(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, Any] | None:
    """The state of a checkpoint if it and the named files are as they were written, else None."""
    try:
        state = json.loads((folder / "state.json").read_text())
        seal = state.pop("seal")
        whole = state["format"] == FORMAT and seal == _seal(state) and set(state["files"]) == set(FILES)
        return state if whole and all(_digest(folder / name) == state["files"][name] for name in names) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _seal(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(folder: Path, name: str = FILES[0]) -> dict[str, Tensor]:
    """Tensors of a checkpoint. Raises InputError when it is missing or damaged."""
    try:
        if verify(folder, (name,)):
            return load_file(folder / name)
    except SafetensorError:  # the hashes are right, and it was no checkpoint when they were made
        pass
    raise InputError(f"no intact checkpoint at {folder}")


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights of a checkpoint into a model. Raises InputError when they belong to another one."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{folder} holds the weights of another model: {' '.join(str(error).split())}") from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state as named tensors, and the few plain numbers beside them.

    Some optimisers (Lamb, Adan) count their steps in the parameter groups: what a group holds beyond the defaults,
    which the config makes, is state too.
    """
    found = optimizer.state_dict()
    named = {f"{index}.{key}": value for index, values in found["state"].items() for key, value in values.items()}
    for number, group in enumerate(found["param_groups"]):
        made = optimizer.defaults.keys() - {"lookahead_step"}  # a count that timm puts among the defaults
        kept = group.keys() - made - {"params", "lr_scale"}
        named |= {f"group{number}.{key}": group[key] for key in sorted(kept)}
    tensors = {name: value for name, value in named.items() if torch.is_tensor(value)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> None:
    """The inverse of ``flatten_optimizer``; learning rates and decays stay as the config made them."""
    groups, state = optimizer.state_dict()["param_groups"], {}
    for name, value in {**tensors, **plain}.items():
        place, key = name.split(".", 1)
        if place.startswith("group"):
            groups[int(place.removeprefix("group"))][key] = value
        else:
            state.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
