"""Makers of published checkpoints with random weights: tars, zips of torch, folders; parts of them as given."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

CONFIG = {"target": "nemo.Model", "encoder": {"_target_": "os.system", "d_model": 176, "x": "${model.x}", "lr": 0.5}}
YAML = json.dumps(CONFIG).encode()  # JSON is YAML
TOKENIZER = b"\n\x0e\n\x05<unk>\x00\xff"


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(6, 5, generator=generator)
    return {
        "encoder.weight": draw,
        "encoder.tied": draw,
        "encoder.t": draw.T[1:, ::2],
        "half": draw.half(),
        "brain": draw.bfloat16(),
        "count": torch.tensor(7),
        "mask": draw > 0,
        "none": torch.empty(0, 3),
    }


def saved(value: object, **keywords) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **keywords)
    return file.getvalue()


def zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, content)
    return file.getvalue()


def unzipped(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


GOOD = saved(weights())


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **attributes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


def tarred(*members: tuple, mode: str = "w", config: bytes | None = YAML, model: bytes | None = GOOD, dot="") -> bytes:
    """A .nemo: config and weights where given, then other members (name, content) or (TarInfo, content)."""
    plain = [("model_config.yaml", config), ("model_weights.ckpt", model), ("ab12_tokenizer.model", TOKENIZER)]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        if dot:
            tar.addfile(info(".", kind=tarfile.DIRTYPE))
        for name, content in [*((dot + name, content) for name, content in plain), *members]:
            if content is not None:
                member = name if isinstance(name, tarfile.TarInfo) else info(name, len(content), mtime=1.5)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def folder_of(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, content in ({"config.json": YAML} | files).items():
        (path / name).write_bytes(content)
    return path


def sharded(path: Path, places: dict | None = None, index: bytes | None = None, **shards: bytes) -> Path:
    """Two shards with the honest weights, each replaced where given."""
    named = {name: value.contiguous() for name, value in weights().items()} | {"encoder.tied": weights()["count"]}
    halves = [dict(list(named.items())[:4]), dict(list(named.items())[4:])]
    files = {f"model-{number}.safetensors": save(half) for number, half in enumerate(halves)} | shards
    wanted = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    text = json.dumps({"metadata": {}, "weight_map": wanted | (places or {})}).encode()
    return folder_of(path, **files, **{"model.safetensors.index.json": index or text})


def tensors(header: dict | bytes, data: bytes = bytes(24), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def spec(start: int, end: int, shape: tuple, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def linked(path: Path, name: str, target: str) -> Path:
    (folder_of(path, **{"model.safetensors": save({"w": torch.ones(2)})}) / name).unlink(missing_ok=True)
    (path / name).symlink_to(target)
    return path


def bomb(name: str, size: int) -> bytes:
    """A tar.gz, made piece by piece, with a member of zeros."""
    file = io.BytesIO()
    with gzip.open(file, "wb", 9) as packed:
        packed.write(info(name, size).tobuf())
        for _ in range(size // 2**20):
            packed.write(bytes(2**20))
    return file.getvalue()


def edited(old: str, new: bytes, **keywords) -> bytes:
    """The honest state dict with one entry of its zip changed."""
    entries = [(name, new if name == f"archive/{old}" else content) for name, content in unzipped(GOOD)]
    return zipped(entries, **keywords)


STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x1etQ"


def tensor_code(offset: int, size: tuple, stride: tuple) -> bytes:
    """A state dict of one tensor, of any shape, over the honest storage 0 of 30 floats."""

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    shape = numbers((offset,))[1:-1] + numbers(size) + numbers(stride)
    call = b"ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + shape + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."
