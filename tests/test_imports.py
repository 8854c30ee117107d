"""Who imports whom, what an import costs, that nothing touches the network or global random state, and short stacks."""

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import change

import seqformer
from seqformer import cli
from seqformer.config import write_config
from seqformer.nn.attention import Attention

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "seqformer"
MOST_LINES, MOST_SECONDS, MOST_FRAMES = 400, 0.3, 8

# design.md, "Who may import whom". A package may import its own files only where it is listed itself, or those named.
PARTS = {"nn", "registry", "errors"}
DATA = {"data", "batch", "augment", "registry", "errors"}
PREDICT = {
    "tta",
    "transcripts",
    "batch",
    "data",
    "model",
    "metrics",
    "config",
    "decode",
    "checkpoint",
    "errors",
    "registry",
}
RULES = {
    "errors": set(),
    "timm_import": set(),
    "machine": set(),
    "registry": {"errors"},
    "kernels": {"kernels", "errors"},
    "nn": {"nn", "kernels"},
    "config": {"errors", "registry"},
    "metrics": {"errors", "registry"},
    "checkpoint": {"errors"},
    "batch": {"nn.mask", "errors"},
    "frontends": PARTS | {"frontends.features", "frontends.audio", "timm_import"},  # gammatone masks as log-mel does
    # The encoder is the network, the other files are settings of it; Conformer's are where its kin start from.
    "backbones": PARTS
    | {"backbones.presets", "backbones.intermediates", "backbones.encoder"}
    | {"backbones.conformer"},
    "heads": PARTS | {"decode"},
    "decode": {"nn", "decode", "errors"},
    "lm": {"lm", "decode", "data.text", "errors"},
    "model": {"frontends", "backbones", "heads", "registry", "errors"},
    "augment": {"augment", "batch", "registry", "errors"} | {"data.audio", "data.corpus"},  # recordings to mix in
    "data": DATA | {"decode"},  # for what a hybrid learns and says
    "pretrained": PARTS
    | {"published", "batch", "data.audio", "data.folder", "data.text", "decode", "heads.ctc", "model"},
    "published": {"published", "backbones.encoder", "errors"},
    "transcripts": {"data", "decode", "model"},
    "predict": PREDICT,
    "analyze": PREDICT | {"predict", "nn", "analyze_plots"},
    "analyze_plots": {"errors", "analyze"},  # for its types
    "profile": PARTS | {"model"},
    "profile_table": {"profile", "checkpoint", "model", "backbones.ladder"},
    "oof": PREDICT | {"predict"},
    "speech": PREDICT
    | {"speech", "predict", "pretrained", "oof", "pseudo", "lm", "train", "nn", "backbones.encoder"}
    | {"cli"},  # which opens runs, their plugins with them
    "download": {"errors"},
    "ensemble": PREDICT | {"predict"},
    "pseudo": PREDICT | {"predict", "oof"},
    "blend": PREDICT | {"predict", "oof", "ensemble"},
    "tta": {"augment", "batch", "data", "errors"},
    "new_competition": {"errors"},
    "submission": {"checkpoint", "errors"},
    "train": PREDICT | {"train", "predict", "augment", "timm_import", "kernels"},
}


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imported_by(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of it; ``from a import b`` is a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                place = ROOT / Path(*inner.split("."))
                yield inner if place.with_suffix(".py").is_file() or place.is_dir() else node.module


def in_subprocess(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, one thread, warnings as errors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", python_files(LIBRARY), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_file_imports_only_what_its_package_may(path):
    own = ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
    package = own.split(".")[0]
    if own in ("__init__", "__main__") or package == "cli":  # these may import everything
        return
    allowed = RULES[package] | ({package} if own.endswith("__init__") else set())
    for module in imported_by(path):
        top, _, inner = module.partition(".")
        assert top != "competitions", f"{own} imports a competition"
        if top == "seqformer":
            assert inner, f"{own} imports the whole library"
            assert any(inner == name or inner.startswith(f"{name}.") for name in allowed), f"{own} imports {module}"


@pytest.mark.parametrize("path", python_files(ROOT / "competitions"), ids=lambda path: "-".join(path.parts[-2:]))
def test_a_competition_uses_public_names_only(path):
    tree = ast.parse(path.read_text())
    for module in imported_by(path):
        if module.split(".")[0] in ("seqformer", "competitions"):
            assert module == "seqformer" or module.startswith("competitions."), f"imports {module}"
    used = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "seqformer"
            for alias in node.names}  # fmt: skip
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Name) and node.value.id == "seqformer"}  # fmt: skip
    assert used <= set(seqformer.__all__), f"not public: {sorted(used - set(seqformer.__all__))}"


def test_the_public_names_are_there_once_and_in_order():
    assert seqformer.__all__ == sorted(set(seqformer.__all__))
    assert all(hasattr(seqformer, name) for name in seqformer.__all__)


def test_no_file_is_longer_than_400_lines():
    files = [
        path for folder in ("seqformer", "competitions", "tests", "benchmarks") for path in python_files(ROOT / folder)
    ]
    long = {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


IMPORT = """
import sys, time
import torch
before, began = set(sys.modules), time.process_time()
import seqformer
print(time.process_time() - began, *{name.split(".")[0] for name in set(sys.modules) - before})
"""


def test_the_import_loads_torch_only_and_is_quick():
    heavy = {"torchvision", "albumentations", "cv2", "polars", "timm", "sklearn", "scipy", "lightning", "omegaconf"}
    heavy |= {"lightning_fabric", "soundfile", "sentencepiece", "safetensors", "rapidfuzz", "pandas", "matplotlib"}
    heavy.add("triton")
    best = float("inf")
    for _ in range(3):
        seconds, *loaded = in_subprocess(IMPORT).split()
        assert not heavy & set(loaded)
        best = min(best, float(seconds))  # processor time: the machine may be busy
    print(f"import {best:.3f} s")
    assert best <= MOST_SECONDS


NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
import importlib.util, pkgutil
import seqformer
for found in pkgutil.walk_packages(seqformer.__path__, "seqformer."):
    needs_triton = found.name.startswith("seqformer.kernels.")
    if not found.name.endswith("__main__") and (not needs_triton or importlib.util.find_spec("triton")):
        importlib.import_module(found.name)
from seqformer.augment.compose import Augment
Augment([{'name': 'gain'}])
assert "albumentations" in sys.modules and "lightning_fabric" in sys.modules
"""


def test_no_module_touches_the_network_at_import():
    environment = {key: "" for key in os.environ if key == "NO_ALBUMENTATIONS_UPDATE"}
    in_subprocess("import os; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n" + NETWORK, **environment)


def test_nothing_draws_from_global_random_state():
    """Generators are made from seeds; of torch's own state, only seeding it for a step is allowed, in training."""
    allowed = {"Random", "default_rng", "SeedSequence", "Generator"}
    for path in [*python_files(LIBRARY), *python_files(ROOT / "competitions")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
                assert {alias.name for alias in node.names} <= allowed, path
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if ast.unparse(node.value) in ("random", "np.random", "numpy.random"):
                    assert node.attr in allowed, f"{path}: {name}"
                if name in ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed"):
                    assert name == "torch.manual_seed" and path.parent.name == "train", f"{path}: {name}"


def test_training_is_offline_and_attention_is_few_calls_away(tiny, tmp_path, monkeypatch):
    """A real run of the ``seqformer`` program; frames of ours from its start to attention's forward, both included."""
    config, stacks = tmp_path / "config.yaml", []
    config.write_text(write_config(change(tiny(), train__epochs=1, train__save_every=None)))
    forward = Attention.forward

    def counted(self, *arguments, **keywords):
        frame, names = sys._getframe(1), [f"attention.{forward.__name__}"]
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if LIBRARY in path.parents:
                names.append(f"{path.stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        if self.training:
            stacks.append(names[::-1])
        return forward(self, *arguments, **keywords)

    def refuse(*arguments):
        raise AssertionError(f"network: {arguments}")

    monkeypatch.setattr(Attention, "forward", counted)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "argv", ["seqformer", "train", str(config), "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert (tmp_path / "tiny" / "metrics.json").is_file()
    steps = [names for names in stacks if "loop.step" in names]
    print(len(steps), "stacks, the deepest:", max(steps, key=len))
    assert steps and max(map(len, steps)) <= MOST_FRAMES
