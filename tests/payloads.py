"""Hostile checkpoints, and a program that reads them under an audit hook (test_archive.py starts it)."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import archives as make
import torch
from archives import GOOD, STORAGE, TOKENIZER, edited, folder_of, info, saved, sharded, tarred, weights
from safetensors.torch import save

from seqformer import InputError
from seqformer.published.archive import read_folder, read_nemo, read_weights

EXECUTED = "EXECUTED"


class Payload:
    """Unpickled, it runs code."""

    def __init__(self, call: Callable = os.system, *arguments: object):
        self.call, self.arguments = call, arguments or (f"touch {EXECUTED}",)

    def __reduce__(self):
        return self.call, self.arguments


class Storage(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", Payload(), "0", "cpu", 1) if value == "persistent" else None


def persistent() -> bytes:
    file = io.BytesIO()
    Storage(file, 2).dump({"w": "persistent"})
    return file.getvalue()


PICKLE = pickle.dumps(Payload(), 2)


def module() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


@cache
def pickles() -> dict[str, bytes]:
    """Weights that are not what they should be."""
    first = b"\x80\x02}X\x01\x00\x00\x00w"
    code = dict(make.unzipped(GOOD))["archive/data.pkl"]
    found = {
        "bare pickle": PICKLE,
        "bare pickle, protocol 0": pickle.dumps(Payload(), 0),
        "legacy torch": saved(weights(), _use_new_zipfile_serialization=False),
        "system": saved({"w": Payload()}),
        "eval": saved(OrderedDict(w=Payload(eval, f"open('{EXECUTED}', 'w')"))),
        "exec in state_dict": saved({"state_dict": {"w": Payload(exec, f"open('{EXECUTED}', 'w')")}}),
        "getattr": edited("data.pkl", b"cbuiltins\ngetattr\n."),
        "torch.load inside": edited("data.pkl", b"ctorch\nload\n(X\x01\x00\x00\x00xtR."),
        "torch.Tensor subclass": edited("data.pkl", b"ctorch._tensor\n_rebuild_from_type_v2\n."),
        "numpy": edited("data.pkl", b"cnumpy.core.multiarray\n_reconstruct\n."),
        "whole module": saved(torch.nn.Linear(2, 2)),
        "payload in a tensor's size": edited(
            "data.pkl", first + b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nX\x02\x00\x00\x00ls\x85RtRs."
        ),
        "payload in a dict's state": edited("data.pkl", b"\x80\x02}cos\nsystem\nX\x02\x00\x00\x00ls\x85Rb."),
        "persistent id": edited("data.pkl", persistent()),
        "persistent id of text": edited("data.pkl", b"Pstorage\n."),
        "persistent string": edited("data.pkl", b"X\x01\x00\x00\x00aQ."),
        "stack global": edited("data.pkl", b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        "inst": edited("data.pkl", b"(X\x02\x00\x00\x00lsios\nsystem\n."),
        "obj": edited("data.pkl", b"(cos\nsystem\nX\x02\x00\x00\x00lso."),
        "newobj": edited("data.pkl", b"ccollections\nOrderedDict\n)\x81."),
        "extension": edited("data.pkl", b"\x82\x01."),
        "call of a string": edited("data.pkl", b"X\x02\x00\x00\x00os)R."),
        "call of a tensor": edited("data.pkl", b"}(tR."),
        "storage in place of a tensor": edited("data.pkl", first + STORAGE[1:] + b"s."),
        "self-sharing key": edited("data.pkl", b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."),
        "self-sharing value": edited("data.pkl", first + b")" + b"q\x00h\x00\x86" * 60 + b"s."),
        "self-sharing storage": edited("data.pkl", b")" + b"q\x00h\x00\x86" * 60 + b"Q."),
        "twice one key": edited("data.pkl", first + b"K\x01sX\x01\x00\x00\x00wK\x02s."),
        "empty stack": edited("data.pkl", b"0000R."),
        "no stop": edited("data.pkl", code[:-1]),
        "memo of nothing": edited("data.pkl", b"h\x09."),
        "long of gigabytes": edited("data.pkl", b"\x8b\xff\xff\xff\x7f."),
        "text of gigabytes": edited("data.pkl", b"X\xff\xff\xff\xff."),
        "beyond the storage": edited("data.pkl", make.tensor_code(0, (31,), (1,))),
        "offset beyond the storage": edited("data.pkl", make.tensor_code(25, (6,), (1,))),
        "stride beyond the storage": edited("data.pkl", make.tensor_code(0, (3,), (15,))),
        "negative stride": edited("data.pkl", make.tensor_code(5, (3,), (-1,))),
        "negative size": edited("data.pkl", make.tensor_code(0, (-3, -3), (1, 1))),
        "negative offset": edited("data.pkl", make.tensor_code(-1, (3,), (1,))),
        "stride 0": edited("data.pkl", make.tensor_code(0, (2**40,), (0,))),
        "overflowing size": edited("data.pkl", make.tensor_code(0, (2**32, 2**32), (1, 1))),
        "one stride too few": edited("data.pkl", make.tensor_code(0, (3, 2), (1,))),
        "short storage": edited("data/0", bytes(8)),
        "long storage": edited("data/0", bytes(800)),
        "big-endian": edited("byteorder", b"big"),
        "not a dict": saved([torch.ones(2)]),
        "no tensors": saved({}),
        "a number among tensors": saved({"w": torch.ones(2), "epoch": 3}),
        "nested dict": saved({"model": {"w": torch.ones(2)}}),
        "numbers as names": saved({1: torch.ones(2)}),
        "torchscript": module(),
        "no data.pkl": make.zipped([("archive/version", b"3")]),
        "empty zip": make.zipped([]),
        "data.pkl at the top": make.zipped([("data.pkl", code)]),
        "two folders": make.zipped([*make.unzipped(GOOD), ("other/data.pkl", code)]),
        "code beside": make.zipped([*make.unzipped(GOOD), ("archive/code/__torch__.py", b"import os")]),
        "entry twice by case": make.zipped([*make.unzipped(GOOD), ("archive/DATA.pkl", code)]),
        "entry twice by dot": make.zipped([*make.unzipped(GOOD), ("archive/./data.pkl", code)]),
        "entry outside": make.zipped([*make.unzipped(GOOD), ("archive/../../data.pkl", code)]),
        "absolute entry": make.zipped([*make.unzipped(GOOD), ("/archive/data/9", code)]),
        "entry with NUL": make.zipped([*make.unzipped(GOOD), ("archive/aX9", code)]).replace(b"aX9", b"a\x009"),
        "deflated": edited("data/0", bytes(2**24), compression=zipfile.ZIP_DEFLATED),
        "changed byte": GOOD.replace(weights()["encoder.weight"].numpy().tobytes()[:8], b"\x01" * 8),
        "comment": GOOD[:-2] + b"\x04\x00abcd",
        "huge directory": GOOD[:-10] + struct.pack("<LLH", 2**31, 0, 0),
        "text": b"hello",
        "nothing": b"",
    }  # fmt: skip
    size = len(GOOD)
    return found | {
        f"cut to {n}": GOOD[:n] for n in (3, 4, 30, 400, size // 2, size - 120, size - 50, size - 22, size - 1)
    }


def configs() -> dict[str, bytes]:
    return {
        "pickle": PICKLE,
        "python object": b"!!python/object/apply:os.system ['touch EXECUTED']",
        "python name": b"a: !!python/name:os.system ''",
        "python module": b"a: !!python/module:os ''",
        "python tuple": b"a: !!python/tuple [1, 2]",
        "custom tag": b"a: !new:os.system [ls]",
        "non-specific tag": b"a: ! ls",
        "tag directive": b"%TAG !p! tag:yaml.org,2002:python/\n---\na: !p!name:os.system ''",
        "binary": b"a: !!binary aGVsbG8=",
        "set": b"a: !!set {x, y}",
        "merge": b"a: &x {b: 1}\nc: {<<: *x}",
        "anchor": b"a: &x 1",
        "laughs": b"a0: &a0 [x,x]\n"
        + b"".join(b"a%d: &a%d [*a%d,*a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60)),
        "itself": b"&a [*a]",
        "deep flow": b"a: " + b"[" * 100_000,
        "deep flow, closed": b"a: " + b"[" * 5000 + b"]" * 5000,
        "deep block": b"".join(b" " * n + b"a:\n" for n in range(200)),
        "deep maps": b"{a: " * 50_000,
        "twice one key": b"a: 1\nb: 2\na: 3",
        "twice one key inside": b"a: {b: 1, b: 2}",
        "key a list": b"? [1, 2]\n: 3",
        "two documents": b"a: 1\n---\nb: 2",
        "a list": b"- 1",
        "a word": b"word",
        "nothing": b"",
        "spaces": b"  \n",
        "no UTF-8": b"a: \xff\xfe",
        "control characters": b"a: \x1b[2J\x00",
        "unclosed": b"a: [1, 2",
        "endless number": b"a: " + b"9" * 5000,
        "too large": b"a: b\n" + b"# " * 2**21,
    }


def archives() -> dict[str, bytes]:
    good, packed = tarred(), tarred(mode="w:gz")
    outside, payload = tarfile.LNKTYPE, b"pwned"
    names = ["../EXECUTED", "/tmp/EXECUTED", "a/../../EXECUTED", "./../EXECUTED", "..", "a\\..\\b", "C:EXECUTED",
             "a\nb", "\x1b[2J", "//EXECUTED", "caf\udce9"]  # fmt: skip
    found = {f"name {name!a}": tarred((info(name, 5, tarfile.REGTYPE), payload)) for name in names}
    kinds = {"symlink": tarfile.SYMTYPE, "hardlink": outside, "character device": tarfile.CHRTYPE,
             "block device": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "contiguous": tarfile.CONTTYPE,
             "unknown type": b"Z"}  # fmt: skip
    for what, kind in kinds.items():
        found[what] = tarred((info("vocab.txt", 0, kind, linkname="../../etc/passwd"), b""))
    sparse = info("vocab.txt", 5, pax_headers={"GNU.sparse.size": "9", "GNU.sparse.map": "0,5"})
    negative = bytearray(tarred((info("vocab.txt", 5), payload)))
    place = negative.index(b"vocab.txt")
    negative[place + 124 : place + 136] = b"\xff" * 12
    total = sum(negative[place : place + 512]) - sum(negative[place + 148 : place + 156]) + 8 * 32
    negative[place + 148 : place + 156] = b"%06o\0 " % total
    oversized = info("x", 40 * 2**20, tarfile.GNUTYPE_LONGNAME).tobuf()
    found |= {
        "weights a symlink": tarred((info("model_weights.ckpt", 0, tarfile.SYMTYPE, linkname="x"), b""), model=None),
        "config a hardlink": tarred((info("model_config.yaml", 0, outside, linkname="x"), b""), config=None),
        "directory outside": tarred((info("../x", kind=tarfile.DIRTYPE), b"")),
        "sparse": tarred((sparse, payload)),
        "old sparse": tarred((info("vocab.txt", 0, tarfile.GNUTYPE_SPARSE), b"")),
        "pax size": tarred((info("vocab.txt", 5, pax_headers={"size": "-1"}), payload)),
        "pax path": tarred((info("vocab.txt", 5, pax_headers={"path": "../EXECUTED"}), payload)),
        "pax NUL": tarred((info("vocab.txt", 5, pax_headers={"path": "a\0b"}), payload)),
        "negative size": bytes(negative),
        "long name of megabytes": oversized + bytes(40 * 2**20) + bytes(1024),
        "long name of megabytes, packed": gzip.compress(oversized + bytes(40 * 2**20) + bytes(1024), 1),
        "weights twice": tarred(("model_weights.ckpt", GOOD)),
        "weights twice by dot": tarred(("./model_weights.ckpt", GOOD)),
        "weights twice by case": tarred(("Model_Weights.ckpt", GOOD)),
        "weights in two folders": tarred(("a/model_weights.ckpt", GOOD)),
        "config twice": tarred(("model_config.yaml", b"a: 1")),
        "tokenizer twice": tarred(("./ab12_tokenizer.model", TOKENIZER)),
        "many members": tarred(*((f"{n}.txt", b"") for n in range(1001))),
        "many directories": tarred(*((info(f"{n}", kind=tarfile.DIRTYPE), b"") for n in range(1001))),
        "no config": tarred(config=None),
        "no weights": tarred(model=None),
        "no members": tarred(config=None, model=None)[-10240:],
        "large tokenizer": tarred((info("big.model", 65 * 2**20), b"\1" * (65 * 2**20))),
        "large config": make.bomb("model_config.yaml", 5 * 2**20),
        "bomb in the weights": make.bomb("model_weights.ckpt", 100 * 2**20),
        "bomb after the end": gzip.compress(good) + gzip.compress(bytes(100 * 2**20), 1),
        "bomb of a directory": make.bomb("x/", 100 * 2**20),
        "goes on": good + b"more" + bytes(508),
        "goes on, packed": gzip.compress(good + good),
        "bzip2": tarred(mode="w:bz2"),
        "xz": tarred(mode="w:xz"),
        "zip": GOOD,
        "pickle": PICKLE,
        "gzip of a pickle": gzip.compress(PICKLE),
        "text": b"hello " * 1000,
        "nothing": b"",
        "broken header": good.replace(b"ab12_token", b"ab12_broke"),
        "wrong CRC": packed[:-8] + bytes(4) + packed[-4:],
    }
    found |= {f"cut to {n} of 12": good[: len(good.rstrip(b"\0")) * n // 12] for n in range(1, 12)}
    return found | {f"packed, cut to {n} of 12": packed[: len(packed) * n // 12] for n in range(1, 12)}


def safetensors() -> dict[str, bytes]:
    good = save({"w": torch.ones(2, 3), "v": torch.ones(3)})
    two = {"w": make.spec(0, 24, (2, 3))}
    found = {
        "pickle": PICKLE,
        "zip": GOOD,
        "header of 100 MB": make.tensors(b'{"w":' + b" " * 10**8 + b"}"),
        "header of 20 MB": make.tensors(json.dumps(two).encode() + b" " * 20_000_000),
        "claimed header of 100 MB": make.tensors(two, length=10**8),
        "claimed header of 2**64": make.tensors(two, length=2**64 - 1),
        "overlap": make.tensors({"w": make.spec(0, 24, (2, 3)), "v": make.spec(12, 36, (2, 3))}, bytes(36)),
        "same place": make.tensors({"w": make.spec(0, 24, (2, 3)), "v": make.spec(0, 24, (2, 3))}),
        "hole": make.tensors({"w": make.spec(0, 24, (2, 3)), "v": make.spec(28, 52, (2, 3))}, bytes(52)),
        "backwards": make.tensors({"w": make.spec(24, 0, (2, 3))}),
        "negative": make.tensors({"w": make.spec(-24, 0, (2, 3))}),
        "beyond": make.tensors({"w": make.spec(0, 2**40, (2**38,))}),
        "wrong shape": make.tensors({"w": make.spec(0, 24, (2, 4))}),
        "overflowing shape": make.tensors({"w": make.spec(0, 24, (2**63, 2**63))}),
        "unknown type": make.tensors({"w": make.spec(0, 24, (2, 3), "PY_OBJECT")}),
        "twice one name": make.tensors(b'{"w":%b,"w":%b}' % ((json.dumps(two["w"]).encode(),) * 2)),
        "twice one name, escaped": make.tensors(b'{"w":%b,"\\u0077":%b}' % ((json.dumps(two["w"]).encode(),) * 2)),
        "twice one field": make.tensors(b'{"w":{"dtype":"F32","dtype":"I32","shape":[2,3],"data_offsets":[0,24]}}'),
        "metadata twice": make.tensors(b'{"__metadata__":{},"__metadata__":{},"w":%b}' % json.dumps(two["w"]).encode()),
        "metadata not text": make.tensors({"__metadata__": {"a": {"b": 1}}} | two),
        "deep": make.tensors(b'{"w":' + b"[" * 100_000),
        "list": make.tensors(b"[]"),
        "data after the end": good + b"\0",
        "no UTF-8": make.tensors(b'{"\xff":1}'),
    }
    size = len(good)
    return found | {f"cut to {n}": good[:n] for n in (0, 7, 8, 9, 40, size // 2, size - 4, size - 1)}


def folders(home: Path) -> dict[str, Path]:
    model, number, made = "model.safetensors", iter(range(1000)), {}
    good = save({"w": torch.ones(2)})
    (home / "outside.json").write_bytes(b'{"secret": 1}')
    (home / "outside.safetensors").write_bytes(good)

    def place() -> Path:
        return home / f"folder{next(number)}"

    jsons = {"pickle": PICKLE, "list": b"[]", "twice one key": b'{"a": 1, "a": 2}', "deep": b'{"a":' + b"[" * 100_000,
             "nothing": b"", "no UTF-8": b'{"a": "\xff"}', "endless number": b"9" * 5000, "cut": b'{"a": ',
             "too large": b'{"a": 1}' + b" " * 2**22}  # fmt: skip
    for what, content in jsons.items():
        made[f"config.json {what}"] = folder_of(place(), **{"config.json": content, model: good})
        made[f"index {what}"] = sharded(place(), index=content or b" ")
    for target in ("../outside.safetensors", str(home / "outside.safetensors"), "/etc/passwd", "a/../b.safetensors",
                   "model-0.bin", "", ".safetensors", "none.safetensors", "..\\x.safetensors",
                   "a\nb.safetensors"):  # fmt: skip
        made[f"shard {target!r}"] = sharded(place(), {"count": target})
    for target in (1, None, ["model-0.safetensors"], {"a": 1}):
        made[f"shard {target!r}"] = sharded(place(), {"count": target})
    made |= {
        "weight_map empty": sharded(place(), index=b'{"weight_map": {}}'),
        "weight_map missing": sharded(place(), index=b"{}"),
        "weight_map a list": sharded(place(), index=b'{"weight_map": []}'),
        "shard repeats a tensor": sharded(place(), **{"model-1.safetensors": save(
            {name: value.contiguous() for name, value in list(weights().items())[3:]})}),
        "shard lacks a tensor": sharded(place(), **{"model-1.safetensors": good}),
        "shard a pickle": sharded(place(), **{"model-1.safetensors": PICKLE}),
        "index and one file": sharded(place(), **{model: good}),
        "no weights": folder_of(place()),
        "bin a pickle": folder_of(place(), **{"pytorch_model.bin": PICKLE}),
        "bin with code": folder_of(place(), **{"pytorch_model.bin": saved({"w": Payload()})}),
        "broken safetensors beside bin": folder_of(place(), **{model: PICKLE, "pytorch_model.bin": GOOD}),
        "large tokenizer": folder_of(place(), **{model: good, "tokenizer.json": bytes(64 * 2**20 + 1)}),
        "config a link out": make.linked(place(), "config.json", "../outside.json"),
        "weights a link out": make.linked(place(), model, "../outside.safetensors"),
        "tokenizer a link out": make.linked(place(), "tokenizer.json", "/etc/passwd"),
        "tokenizer a link to a device": make.linked(place(), "vocab.txt", "/dev/zero"),
        "tokenizer a loop": make.linked(place(), "vocab.txt", "vocab.txt"),
        "tokenizer a link to nothing": make.linked(place(), "vocab.txt", "none"),
        "weights a folder": folder_of(place()), "no config": place(),
    }  # fmt: skip
    (made["weights a folder"] / model).mkdir()
    made["tokenizer a pipe"] = folder_of(place(), **{model: good})
    os.mkfifo(made["tokenizer a pipe"] / "vocab.txt")
    return made


def payloads(home: Path) -> list[tuple[str, Callable, Path]]:
    """(what it is, who reads it, where it lies), all written below ``home``."""
    found = [(f"folder: {what}", read_folder, path) for what, path in folders(home).items()]
    files = [("weights", read_weights, ".ckpt", what, content) for what, content in pickles().items()]
    files += [("nemo weights", read_nemo, ".nemo", what, tarred(model=data)) for what, data in pickles().items()]
    files += [("config", read_nemo, ".nemo", what, tarred(config=content)) for what, content in configs().items()]
    files += [("archive", read_nemo, ".nemo", what, content) for what, content in archives().items()]
    files += [("safetensors", read_weights, ".safetensors", what, content) for what, content in safetensors().items()]
    files += [("ending", read_weights, ending, ending, GOOD) for ending in (".pkl", "", ".npz", ".SafeTensors")]
    for number, (kind, reader, ending, what, content) in enumerate(files):
        path = home / f"file{number}{ending}"
        path.write_bytes(content)
        found.append((f"{kind}: {what}", reader, path))
    return found + [(f"absent: {reader.__name__}", reader, home / "none.pt") for reader in (read_nemo, read_weights)]


WATCHED = ("os.", "subprocess.", "exec", "compile", "import", "pickle.", "socket.", "ctypes.", "shutil.", "marshal.")
HARMLESS = ("os.listdir", "os.scandir")


def main(home: Path) -> None:
    """Read every payload, and print as JSON what came of each and every event that should not be."""
    cases, events, watching = payloads(home), [], False
    honest = home / "honest.nemo"
    honest.write_bytes(tarred(mode="w:gz"))
    sharded(home / "honest")

    def watch(event: str, arguments: tuple) -> None:
        if not watching or event in HARMLESS:
            return
        writes = event == "open" and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        spooled = event in ("open", "os.remove") and str(arguments[0]).startswith(os.environ["TMPDIR"])
        if (event.startswith(WATCHED) or writes) and not spooled:
            events.append(f"{event} {arguments!r:.200}")

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    sys.addaudithook(watch)
    (read_nemo(honest), read_folder(home / "honest"), "".encode("cp437"))  # what is imported lazily is imported now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, results = peak(), []
    for what, reader, path in cases:
        watching = True
        try:
            reader(path)
            outcome = "read"
        except InputError as error:
            outcome = ""
            message = str(error)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        watching = False
        if not outcome and not (str(path) in message and message.isprintable() and len(message) < len(str(path)) + 400):
            outcome = f"message: {message!a}"
        results.append((what, outcome, "" if outcome else message.replace(str(path), "PATH"), events[:]))
        events.clear()
    memory, watching = peak() - before, True
    pickle.loads(pickle.dumps(Payload(os.system, "true")))  # the watch does see what it looks for
    print(json.dumps({"results": results, "memory": memory, "seen": [event.split()[0] for event in events]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
