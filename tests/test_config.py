"""A config is plain data, checked strictly: each mistake is one line with what was found and what would do."""

import dataclasses
import typing
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, change

import seqformer.augment
from seqformer import InputError, config
from seqformer.cli import load_competition
from seqformer.config import Data, Folds, Optim, Run, Sampling, Text, Train, build_config, read_config, write_config
from seqformer.registry import check_type, names
from seqformer.train.crossval import FREE, check_parts, differing_keys, resolve_precision

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SECTIONS = {"data": Data, "folds": Folds, "text": Text, "sampling": Sampling, "optim": Optim, "train": Train}


def refusal(plain: dict | list, *overrides: str, folder: Path) -> str:
    """The one line with which a config is refused."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(InputError) as caught:
        check_parts(build_config(read_config(path, list(overrides))))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"trian": {}}, "config: unknown key 'trian'; did you mean 'train'?"),
        ({"train__epoch": 3}, "config: train: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"data__zzz": 3}, "config: data: unknown key 'zzz'; known: batch_frames, batch_seconds, batch_units, "),
        ({"train__epochs": "many"}, "config: train.epochs: found 'many' (str); expected int"),
        ({"train__epochs": 1.5}, "config: train.epochs: found 1.5 (float); expected int"),
        ({"train__epochs": True}, "config: train.epochs: found True (bool); expected int"),
        ({"train__epochs": None}, "config: train.epochs: found None (NoneType); expected int"),
        ({"seed": "7"}, "config: seed: found '7' (str); expected int"),
        ({"run": 5}, "config: run: found 5 (int); expected str"),
        ({"optim__lr": "fast"}, "config: optim.lr: found 'fast' (str); expected float"),
        ({"optim__betas": [0.9]}, "config: optim.betas: found [0.9]; expected 2 values"),
        ({"optim__betas": [0.9, "x"]}, "config: optim.betas[1]: found 'x' (str); expected float"),
        ({"folds__use": [1]}, "config: folds.use: found [1]; expected int or str"),
        ({"data": None}, "config: data: found None (NoneType); expected Data"),
        ({"data": [1]}, "config: data: found [1]; expected keys manifest, where, "),
        ({"augment": {"name": "speed"}}, "config: augment: found {'name': 'speed'} (dict); expected list"),
        ({"augment": ["speed"]}, "config: augment[0]: found 'speed' (str); expected dict"),
        ({"frontend": "logmel"}, "config: frontend: found 'logmel' (str); expected dict"),
        ({"frontend": {"mels": 8}}, "config: frontend: found {'mels': 8}; expected a name, and keywords"),
        ({"frontend": {"a": {"name": "logmel"}}}, "config: frontend: found {'a': {'name': 'logmel'}}; expected a name"),
        ({"head": {}}, "config: head: found {}; expected a name"),
        ({"head": {"a": {"vocab": 3}}}, "config: head: found {'vocab': 3}; expected a name"),
        ({"optim__schedule": "cosin"}, "config: optim.schedule: found 'cosin'; expected one of 'constant', 'cosine', "),
        ({"optim__schedule": "cosin"}, "; did you mean 'cosine'?"),
        ({"train__precision": "fp8"}, "found 'fp8'; expected one of 'auto', 'fp32', 'bf16', 'fp16'"),
        ({"train__device": "gpu"}, "found 'gpu'; expected one of 'auto', 'cpu', 'cuda', 'mps'"),
        ({"run": "../x"}, "config: run '../x' must be a plain folder name"),
        ({"run": ".x"}, "config: run '.x' must be a plain folder name"),
        ({"data__batch_seconds": 3}, "config: data needs one of batch_seconds and batch_frames"),
        ({"train__patience": 3}, "config: train.patience needs train.select: best"),
        ({"train__epochs": 0}, "config: train.epochs is 0; it must be above 0"),
        ({"data__workers": -1}, "config: data.workers is -1; it must be 0 or more"),
        ({"seed": -1}, "config: seed is -1; it must be from 0 to 2**32 - 1"),
        ({"optim__lr": float("nan")}, "config: optim.lr is nan; it must be above 0"),
        ({"optim__lr": float("inf")}, "config: optim.lr is inf; it must be above 0"),
        ({"train__ema": 1.0}, "config: train.ema is 1.0; it must be from 0 to below 1"),
        ({"optim__betas": [0.9, 1.0]}, "config: optim.betas is 1.0; it must be from 0 to below 1"),
        ({"optim__warmup": 1.5}, "config: optim.warmup is 1.5; it must be from 0 to 1"),
        ({"optim__warmup": 0.6, "optim__hold": 0.6}, "optim.warmup and hold are shares of all steps; together"),
        ({"optim__schedule": "hold_decay", "optim__warmup": 0.0}, "hold_decay falls as warmup / share"),
        ({"frontend__name": "logmels"}, "unknown frontend 'logmels'; did you mean 'logmel'?"),
        ({"backbone__name": "squeezeforme"}, "unknown backbone 'squeezeforme'; did you mean 'squeezeformer'?"),
        ({"head__name": "rnnt9"}, "unknown head 'rnnt9'; "),
        ({"metric__name": "were"}, "unknown metric 'were'; did you mean 'wer'?"),
        ({"dataset": {"name": "row"}}, "unknown dataset 'row'; did you mean 'rows'?"),
        ({"augment": [{"name": "sped"}]}, "unknown augment 'sped'; did you mean 'speed'?"),
        ({"frontend__mel": 8}, "config: frontend: logmel has no argument 'mel'; did you mean 'mels'?"),
        ({"frontend__mels": "8"}, "config: frontend.mels: found '8' (str); expected int"),
        ({"frontend__normalize": "bins"}, "config: frontend.normalize: found 'bins'; expected one of"),
        ({"backbone__in_dim": 8}, "config: backbone: squeezeformer has no argument 'in_dim'; "),
        ({"backbone__deph": 2}, "config: backbone: squeezeformer has no argument 'deph'; did you mean 'depth'?"),
        ({"head__targets": "text"}, "config: head: ctc has no argument 'targets'; did you mean 'target'?"),
        ({"augment": [{"name": "speed", "factor": []}]}, "config: augment: speed has no argument 'factor'; did you"),
        ({"metric": {"name": "wer", "x": 1}}, "config: metric: wer has no argument 'x'"),
        ({"optim__name": "adamv"}, "optim.name: found 'adamv'; did you mean 'adam"),
        ({"optim__name": "kron"}, "optim.name: kron draws random numbers of its own"),
        ({"optim__name": "adahessian"}, "optim.name: adahessian needs second derivatives"),
    ],
)
def test_mistakes(tmp_path, changes, wanted):
    assert wanted in refusal(change(TINY, **changes), folder=tmp_path)


@pytest.mark.parametrize("section", ["run", "data", "frontend", "backbone", "head", "train"])
def test_missing_sections(tmp_path, section):
    plain = {key: value for key, value in TINY.items() if key != section}
    assert refusal(plain, folder=tmp_path) == f"config: {section} is missing"


def test_missing_keys(tmp_path):
    assert refusal(change(TINY, train={}), folder=tmp_path) == "config: train.epochs is missing"
    assert refusal(change(TINY, data={}), folder=tmp_path) == "config: data.manifest is missing"


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("train.epochs", "override 'train.epochs': expected key=value, such as train.epochs=10"),
        ("--epochs=3", "override '--epochs=3': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("train.epochs=abc", "config: train.epochs: found 'abc' (str); expected int"),
        ("train.epoch=3", "config: train: unknown key 'epoch'; did you mean 'epochs'?"),
        ("trian.epochs=3", "config: unknown key 'trian'; did you mean 'train'?"),
        ("train=3", "config: train: found 3; expected keys epochs, precision, "),
        ("run.x=3", "run is 'tiny', which has no keys; give it whole"),
        ("train.epochs=[1", "override train.epochs=[1: "),
        ("augment.0.name=speed", "override augment.0.name=speed: "),
        ("run=${oc.env:HOME}", "config.yaml: run: found '${oc.env:HOME}'; a config holds plain values"),
        ("train.epochs=!!python/object/apply:os.getpid []", "override train.epochs="),
    ],
)
def test_bad_overrides(tmp_path, override, wanted):
    assert wanted in refusal(TINY, override, folder=tmp_path)


def test_good_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text(write_config(TINY))
    overrides = ["train.epochs=10", "optim.lr=1e-3", "optim.betas=[0.8,0.9]", "text=null", "folds.use=full", "seed=3"]
    run = build_config(read_config(tmp_path / "c.yaml", overrides))
    assert (run.train.epochs, run.optim.lr, run.optim.betas, run.seed) == (10, 1e-3, (0.8, 0.9), 3)
    assert run.text is None and run.folds.use == "full" and run.data.batch_frames == 8000


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("run: ${oc.env:HOME}\n", "config.yaml: run: found '${oc.env:HOME}'"),
        ("data: {manifest: [x, '${run}']}\n", "config.yaml: data.manifest[1]: found '${run}'"),
        ("run: ${\n", "config.yaml"),
        ("run: !!python/object/apply:os.mkdir [EXECUTED]\n", "is not readable YAML: could not determine a constructor"),
        ("run: !!python/name:os.system\n", "is not readable YAML: could not determine a constructor"),
        ("run: !include other.yaml\n", "is not readable YAML: could not determine a constructor"),
        ("run: [\n", "is not readable YAML: while parsing"),
        ("run: a\nrun: b\n", "is not readable YAML: while constructing a mapping"),
        ("\tx", "is not readable YAML: while scanning"),
        ("- a\n- b\n", "expected sections such as run, data, backbone; found a list"),
        ("just text\n", "config: unknown key 'just text'"),
        ("", "config: run is missing"),
        (b"\xff\xfe\x00", "config.yaml is not readable YAML"),
    ],
)
def test_nothing_but_plain_yaml(tmp_path, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for overrides in ([], ["seed=1"]):
        with pytest.raises(InputError) as caught:
            build_config(read_config(path, overrides))
        assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "EXECUTED").exists()
    with pytest.raises(InputError, match="no config at"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path, monkeypatch):
    """Each builds, names only what is registered, is named as its file, and fits on a screen."""
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    plain = read_config(path)
    load_competition(plain.get("competition"))
    run = build_config(plain)
    check_parts(run)
    assert run.run == path.stem and len(text.splitlines()) <= 45
    assert "${" not in text  # a tag of YAML would not pass safe_load
    assert read_config(path) == yaml.safe_load(text)


def test_there_are_shipped_configs():
    assert CONFIGS


@pytest.mark.parametrize("cls", [Run, *SECTIONS.values()])
def test_defaults_are_of_the_type_they_are_annotated_with(cls):
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        made = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if made is not dataclasses.MISSING and not dataclasses.is_dataclass(made):
            assert check_type(made, hints[item.name], item.name) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(build_config(TINY), dataclasses.fields(Run)[0].name, "x")


def test_every_limit_names_a_key_and_holds_for_the_defaults():
    for key in config._LIMITS:
        *section, name = key.split(".")
        cls = Run
        for part in section:  # the dataclass of a section, also of one that may be left out
            hint = typing.get_type_hints(cls)[part]
            cls = next(one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one))
        assert name in {item.name for item in dataclasses.fields(cls)}


def test_names_that_configs_may_use_are_registered():
    assert {"speed", "noise", "gain"} <= set(names("augment")) and seqformer.augment
    assert {"logmel", "dense"} <= set(names("frontend"))
    assert {"wer", "cer", "accuracy"} <= set(names("metric"))


def test_written_and_read_again(tmp_path):
    plain = change(TINY, data__where={"half": [0, 1]}, text=None, optim__lr=1e-7)
    (tmp_path / "config.yaml").write_text(write_config(plain))
    assert read_config(tmp_path / "config.yaml") == plain
    assert build_config(read_config(tmp_path / "config.yaml")) == build_config(plain)


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({}, []),
        ({"seed": 8}, ["seed"]),
        ({"optim__lr": 1e-3, "train__ema": 0.5}, ["optim.lr", "train.ema"]),
        ({"optim__name": "lion"}, ["optim.name"]),
        ({"augment": []}, ["augment"]),
        ({"text": None}, ["text.kind"]),
        (
            {"frontend__spec_augment": None},
            [f"frontend.spec_augment.{key}" for key in sorted(TINY["frontend"]["spec_augment"])],
        ),
        ({"competition": "fsdd"}, ["competition"]),
        ({"data__workers": 3, "folds__use": "all", "train__device": "auto", "train__save_every": None}, []),
        ({"folds": {"use": 1}}, ["folds.by", "folds.kind"]),
        ({"head": {"a": {"name": "ctc"}}}, ["head.a.name", "head.name"]),
    ],
)
def test_differing_keys(changes, wanted):
    assert differing_keys(TINY, change(TINY, **changes)) == wanted
    assert differing_keys(change(TINY, **changes), TINY) == wanted


def test_a_section_left_out_differs_in_what_the_other_says():
    bare = {key: value for key, value in TINY.items() if key not in ("folds", "optim")}
    assert differing_keys(bare, bare | {"folds": {"use": 1}}) == []
    assert differing_keys(bare, bare | {"optim": {"lr": 1e-3}}) == ["optim.lr"]
    for key in FREE:
        section, _, name = key.rpartition(".")
        assert name in {item.name for item in dataclasses.fields(SECTIONS[section] if section else Run)}


def test_auto_precision_is_fp32_on_a_cpu_and_bf16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = [resolve_precision(Train(epochs=1, precision="auto", device=device)) for device in ("cpu", "auto")]
    assert found == ["fp32", "bf16"] and resolve_precision(Train(epochs=1, precision="fp16")) == "fp16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision(Train(epochs=1, precision="auto")) == "fp32"


def test_an_override_replaces_what_was_there(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("backbone: {name: conformer, dim: 8, depth: 2}\ntrain: {epochs: 3, clip: 1.0}\n")
    plain = read_config(path, ["backbone={pretrained: saved, freeze: 2}", "train.epochs=5", "head.name=ctc"])
    assert plain["backbone"] == {"pretrained": "saved", "freeze": 2}  # and no dim of the one before
    assert plain["train"] == {"epochs": 5, "clip": 1.0} and plain["head"] == {"name": "ctc"}
    assert read_config(path, ["backbone.dim=16"])["backbone"] == {"name": "conformer", "dim": 16, "depth": 2}
