"""Checkpoints that survive a kill at any moment, without pickle.

A checkpoint is a folder: ``model.safetensors`` (the weights to use, averaged ones where there are), then
``optim.safetensors`` (optimiser state and, beside averaged weights, the raw ones), and last ``state.json`` with the
SHA-256 of both. It is written under another name, flushed to disk, and renamed; ``find`` takes the newest that verifies.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from seqformer.errors import InputError

FORMAT = 1
_SUFFIXES = ("", ".new", ".old")


def write_file(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename: the file is old or new, never between."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


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
    """Replace the checkpoint at ``folder``. Whenever the process dies, ``find`` has the old one or this one."""
    new, old = (folder.with_name(folder.name + suffix) for suffix in (".new", ".old"))
    if old.exists():  # a kill came between the two renames below: settle which copy counts before reusing the names
        find_checkpoint(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    hashes = {}
    for name, tensors in (("model.safetensors", model), ("optim.safetensors", optim)):
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        hashes[name] = hashlib.sha256(content).hexdigest()
        write_file(new / name, content)
    write_file(new / "state.json", json.dumps({"format": FORMAT, "files": hashes} | state, indent=1) + "\n")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> dict[str, Any] | None:
    """State of the newest checkpoint that verifies, put in place at ``folder`` with leftovers removed; None if none is.

    The order of the names is the order of trust: ``.new`` is complete only when a kill came after its state.json,
    ``.old`` is what was there before.
    """
    found = [(suffix, state) for suffix in _SUFFIXES if (state := verify(folder.with_name(folder.name + suffix)))]
    if not found:
        return None
    suffix, state = max(found, key=lambda pair: (pair[1]["step"], -_SUFFIXES.index(pair[0])))
    if suffix:
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(folder.with_name(folder.name + suffix), folder)
    for other in _SUFFIXES[1:]:
        shutil.rmtree(folder.with_name(folder.name + other), ignore_errors=True)
    return state


def verify(folder: Path) -> dict[str, Any] | None:
    """The state of a checkpoint whose files are all there with the hashes they were written with, else None."""
    try:
        state = json.loads((folder / "state.json").read_text())
        whole = all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in state["files"].items()
        )
        return state if whole and state["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def load_weights(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    """Tensors of a checkpoint. Raises InputError when it is missing or damaged."""
    if verify(folder) is None:
        raise InputError(f"no intact checkpoint at {folder}")
    return load_file(folder / name)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state as named tensors, and the few plain numbers beside them."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            (tensors if torch.is_tensor(value) else plain)[f"{index}.{key}"] = value
    return tensors, plain


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> None:
    """The inverse of ``flatten_optimizer``; learning rates and decays stay as the config made them."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **plain}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
