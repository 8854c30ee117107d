"""P4, P5: published checkpoints come in whole; hostile ones are refused in one line, run nothing and write nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import payloads
import pytest
import torch
from archives import CONFIG, GOOD, TOKENIZER, YAML, folder_of, saved, sharded, tarred, weights
from payloads import EXECUTED
from safetensors.torch import save

from seqformer import InputError
from seqformer.published.archive import Published, read_folder, read_nemo, read_weights

ROOT = Path(__file__).parents[1]
MOST_SECONDS, MOST_MEMORY = 60, 200 * 2**20  # for all payloads; a tokenizer alone may take 64 MiB


def equal(found: dict, wanted: dict) -> bool:
    assert list(found) == list(wanted)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found.values(), wanted.values(), strict=True))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("dot", ["", "./"])
def test_an_archive_comes_in_whole(tmp_path, mode, dot):
    (tmp_path / "a.nemo").write_bytes(tarred(("./sub/ab12_vocab.txt", b"a\nb"), mode=mode, dot=dot))
    found = read_nemo(str(tmp_path / "a.nemo"))
    assert isinstance(found, Published) and equal(found.weights, weights()) and found.config == CONFIG
    assert found.files == {"ab12_tokenizer.model": TOKENIZER, "ab12_vocab.txt": b"a\nb"}
    tied = found.weights["encoder.tied"]
    assert tied.data_ptr() == found.weights["encoder.weight"].data_ptr()


def test_yaml_is_plain_data(tmp_path):
    text = "a: 1\nb: {c: 1.5e-3, d: null, e: [yes, 'no', ~], 3: x}\nday: 2024-01-01\nsign: =\nf: !!str 1\n"
    (tmp_path / "a.nemo").write_bytes(tarred(config=text.encode()))
    nested = {"c": 1.5e-3, "d": None, "e": [True, "no", None], 3: "x"}
    assert read_nemo(tmp_path / "a.nemo").config == {"a": 1, "b": nested, "day": "2024-01-01", "sign": "=", "f": "1"}


@pytest.mark.parametrize("ending", [".ckpt", ".bin", ".pt"])
def test_state_dicts_come_in_whole(tmp_path, ending):
    path, model = tmp_path / f"a{ending}", torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in "ab"}
    extras = {"epoch": 3, "lr": [0.1, None, True], "optim": {"state": {0: torch.ones(2)}, "big": 2**40}}
    for value, wanted in [
        (weights(), weights()),
        (model.state_dict(), model.state_dict()),
        (parameters, {name: parameter.detach() for name, parameter in parameters.items()}),
        ({"state_dict": model.state_dict()} | extras, model.state_dict()),
    ]:
        path.write_bytes(saved(value))
        found = read_weights(path)
        assert equal(found, wanted) and not any(tensor.requires_grad for tensor in found.values())
        assert equal(found, torch.load(path).get("state_dict", wanted))
    path.write_bytes(saved({"w": torch.arange(2**20)}))
    assert equal(read_weights(path), {"w": torch.arange(2**20)})


def test_folders_come_in_whole(tmp_path):
    small = {
        "tokenizer.json": b"{}",
        "vocab.txt": b"a",
        "tokenizer.model": TOKENIZER,
        "preprocessor_config.json": b"{}",
    }
    one = {"w": torch.randn(3, 2), "v": torch.arange(3)}
    beside = {"model.nemo": b"x", "pytorch_model.bin": b"x", "README.md": b"x"}
    found = read_folder(folder_of(tmp_path / "one", **{"model.safetensors": save(one)}, **small, **beside))
    assert (
        found.config == CONFIG
        and found.files == small
        and equal(dict(sorted(found.weights.items(), reverse=True)), one)
    )
    found = read_folder(sharded(tmp_path / "shards"))
    assert found.weights.keys() == weights().keys() and not found.files
    assert torch.equal(found.weights["encoder.t"], weights()["encoder.t"])
    found = read_folder(folder_of(tmp_path / "bin", **{"pytorch_model.bin": GOOD}))
    assert equal(found.weights, weights())


def test_the_cache_of_the_hub_is_a_folder_of_links(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "blobs" / "ab12").write_bytes(save({"w": torch.ones(2)}))
    folder = folder_of(tmp_path / "snapshots" / "main")
    (folder / "model.safetensors").symlink_to("../../blobs/ab12")
    assert equal(read_folder(folder).weights, {"w": torch.ones(2)})
    (folder / "vocab.txt").symlink_to("../../other")
    with pytest.raises(InputError, match=r"vocab.txt: is a link that leads out of its folder"):
        read_folder(folder)


def test_large_weights_of_an_archive_go_through_a_private_file(tmp_path, monkeypatch):
    monkeypatch.setattr("seqformer.published.archive.MOST_FILE", 2000)  # where they leave memory
    (tmp_path / "a.nemo").write_bytes(tarred(mode="w:gz"))
    assert equal(read_nemo(tmp_path / "a.nemo").weights, weights())
    assert [path.name for path in tmp_path.iterdir()] == ["a.nemo"]


def test_flipped_bytes_are_refused_or_read_without_another_error(tmp_path):
    """Tensors of an archive carry checksums; its names and config do not."""
    path, generator, refused = tmp_path / "a.ckpt", torch.Generator().manual_seed(0), 0
    places = torch.randint(len(GOOD), (300,), generator=generator).tolist()
    for place in places:
        flipped = bytearray(GOOD)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert equal(read_weights(path), weights())  # padding, dates: nothing that is read
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and str(error).isprintable()
    print(f"{refused} of {len(places)} refused, the others read with the right content")
    for place in range(0, len(YAML), 3):
        (tmp_path / "a.nemo").write_bytes(tarred(config=YAML[:place] + b"\xff" + YAML[place + 1 :]))
        with pytest.raises(InputError, match=r"a.nemo: model_config.yaml: "):
            read_nemo(tmp_path / "a.nemo")


def test_payloads_are_refused_and_nothing_runs_or_is_written(tmp_path):
    """A fresh process reads them all under an audit hook, with its own working and temporary folders."""
    for name in ("home", "work", "temporary"):
        (tmp_path / name).mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, payloads.__file__, str(tmp_path / "home")]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path / "work", capture_output=True, text=True, timeout=MOST_SECONDS
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(*(f"{what}: {message}" for what, _, message, _ in found["results"]), sep="\n")
    print(f"{len(found['results'])} payloads, {found['memory'] >> 20} MiB beyond the start")
    wrong = [(what, outcome, events) for what, outcome, _, events in found["results"] if outcome or events]
    assert not wrong, "\n".join(map(str, wrong))
    assert len(found["results"]) >= 100 and len({what for what, *_ in found["results"]}) == len(found["results"])
    assert found["memory"] < MOST_MEMORY
    assert {"pickle.find_class", "os.system"} <= set(found["seen"])
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "temporary").iterdir())
    assert not list(tmp_path.rglob(f"{EXECUTED}*")) and not Path("/tmp", EXECUTED).exists()
