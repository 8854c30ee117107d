"""Every block of code in the README runs, and every command in it is one that runs.

Those in blocks marked ``shell`` need the data of a competition: test_new_competition, test_blend and
test_leaks run their like.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_published import nemo_weights
from typer.testing import CliRunner

from seqformer import create_backbone, create_model, save_pretrained
from seqformer.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
# What makes a 200-epoch run of a 9 M model on a GPU a run of seconds; the command itself stays as it is printed.
QUICK = (
    "train.epochs=1 train.precision=fp32 train.threads=1 data.workers=0 data.batch_seconds=10 text.kind=chars "
    "folds.n=2 backbone.depth=1 backbone.dim=16 backbone.kernel=3"
)


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code, tmp_path):
    """What a block leaves to the reader, a checkpoint and a publisher's weights, is put in its place."""
    torch.set_num_threads(1)
    part = dict(dim=8, depth=1, heads=2)
    encoder = create_backbone("conformer", in_dim=80, convention="nemo", **part)
    config = {"feat_in": 80, "n_layers": 1, "d_model": 8, "n_heads": 2}
    found: dict = {"weights": nemo_weights(encoder, squeezed=False), "config": config}
    if "PATH" in code:
        model = create_model({"name": "logmel"}, {"name": "conformer"} | part, {"name": "ctc", "vocab": 3})
        save_pretrained(model, tmp_path / "saved")
    exec(code.replace("PATH", str(tmp_path / "saved")), found)
    if "logits" in found:
        assert found["logits"].shape == (2, 75, 128)


def test_make_targets_exist():
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_run_in_order(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    corpus = tmp_path / "LibriSpeech"
    for split, speakers in (("train-mini", (1, 2, 3, 4)), ("test-mini", (9,))):
        for speaker in speakers:
            folder = corpus / split / str(speaker) / "7"
            folder.mkdir(parents=True)
            for number in range(2):
                soundfile.write(folder / f"{speaker}-7-{number:04d}.flac", rng.normal(size=12_000) * 0.1, 16_000)
            lines = [f"{speaker}-7-{number:04d} HELLO WORLD\n" for number in range(2)]
            (folder / f"{speaker}-7.trans.txt").write_text("".join(lines))
    soundfile.write(tmp_path / "recording.wav", rng.normal(size=(9_000, 2)) * 0.1, 22_050)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "competitions").symlink_to(ROOT / "competitions")
    monkeypatch.chdir(tmp_path)

    done = 0
    for command in COMMANDS:
        words = shlex.split(command.replace("PATH/TO/LibriSpeech", str(corpus)))
        if words[:1] == ["python"]:
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, env={"PYTHONPATH": str(ROOT)})
        elif words[:1] == ["seqformer"]:
            extra = ["backbone.reduce_at=null"] if "squeezeformer" in command else []
            extra = {"train": QUICK.split() + extra, "profile": ["--no-time"]}.get(words[1], [])
            result = CliRunner().invoke(app, words[1:] + extra)
            assert result.exit_code == 0, (command, result.output, result.exception)
        else:
            assert words[:1] == ["make"] or not words, f"no test knows how to run {command!r}"
        done += 1
    assert done >= 7
