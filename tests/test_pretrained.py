"""Whole checkpoints: a .nemo file, a Parakeet folder and our own load, answer, train a step, save and load again."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import change
from test_published import nemo_weights, scramble

import seqformer
from seqformer import InputError, create_model, load_pretrained, push_to_hub, save_pretrained
from seqformer.config import Optim, write_config
from seqformer.data.text import BPE, Characters
from seqformer.nn.mask import mask_of
from seqformer.predict import TrainedRun
from seqformer.pretrained import transcribe_files
from seqformer.timm_import import import_timm
from seqformer.train.crossval import train_run
from seqformer.train.log import RunLog
from seqformer.train.optim import lr_scales, make_optimizer

torch.set_num_threads(1)

TEXTS = ["the cat sat on the mat", "a dog ran to the cat", "on the mat the dog sat", "cats and dogs ran at last"]
RATE = 16000


def batch(items: int = 2) -> tuple[dict, torch.Tensor]:
    torch.manual_seed(1)
    return {"x": 0.1 * torch.randn(items, RATE)}, mask_of(torch.tensor([RATE, RATE // 2][:items]), RATE)


def nemo_file(path: Path, hybrid: bool = False) -> tuple[torch.nn.Module, torch.Tensor, bytes]:
    """A .nemo archive with random weights; our encoder in it, its CTC layer (blank last) and its tokenizer model."""
    encoder = seqformer.create_backbone(
        "conformer", in_dim=80, dim=32, depth=3, heads=4, stem="depthwise_conv2d", convention="nemo"
    ).eval()
    scramble(encoder)
    tokenizer = BPE.fit(TEXTS, 24).model
    layer = torch.randn(25, 32, 1)
    place = "ctc_decoder" if hybrid else "decoder"
    weights = {f"encoder.{name}": torch.from_numpy(value) for name, value in nemo_weights(encoder, False).items()}
    weights |= {f"{place}.decoder_layers.0.weight": layer, f"{place}.decoder_layers.0.bias": torch.arange(25.0)}
    weights["preprocessor.featurizer.fb"] = torch.zeros(1, 80, 257)
    config = {
        "target": "nemo.collections.asr.models.EncDecCTCModelBPE",
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            **{"sample_rate": RATE, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01},
            **{"window": "hann", "features": 80, "n_fft": 512, "log": True, "dither": 1.0e-5, "pad_to": 0},
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            **{"feat_in": 80, "n_layers": 3, "d_model": 32, "n_heads": 4, "subsampling": "dw_striding"},
        },
        "decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "vocabulary": ["x"] * 24},
        "tokenizer": {"dir": None, "type": "bpe", "model_path": "nemo:0123_tokenizer.model"},
    }
    checkpoint = io.BytesIO()
    torch.save(weights, checkpoint)
    members = {
        "./model_config.yaml": write_config(config).encode(),
        "./model_weights.ckpt": checkpoint.getvalue(),
        "./0123_tokenizer.model": tokenizer,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    return encoder, layer, tokenizer


def fine_tune(model: torch.nn.Module) -> None:
    """One step on two items."""
    inputs, mask = batch()
    optimizer = make_optimizer(model, Optim(lr=1e-2))
    model.train()
    loss = model(inputs, mask, {"text": torch.tensor([[3, 4], [5, -1]])}, torch.ones(2))["loss"]
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    model.eval()


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    return model(*batch())["ctc"]


def saved_again(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Train a step, save, load: equal, and the same from a second save."""
    before = answers(model)
    fine_tune(model)
    assert not torch.allclose(answers(model), before)
    save_pretrained(model, folder, {"WER": "12 %"})
    again = load_pretrained(folder)
    assert torch.equal(answers(again), answers(model))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    save_pretrained(again, folder)  # over what it wrote itself
    assert again.parts == load_pretrained(folder).parts == json.loads((folder / "config.json").read_text())["model"]
    return again


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_nemo_file(tmp_path, hybrid):
    encoder, layer, tokenizer = nemo_file(tmp_path / "model.nemo", hybrid)
    model = load_pretrained(tmp_path / "model.nemo")
    state = encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())
    # The blank, last there, is unit 0; the pieces follow.
    assert torch.equal(model.heads["ctc"].linear.weight, layer.flatten(1).roll(1, 0).detach())
    assert model.heads["ctc"].linear.bias.tolist() == [24, *range(24)]
    with torch.no_grad():
        logits = answers(model)
        features = model.frontend(*batch())
        expected, mask = encoder(features.x, features.mask)
    assert logits.shape == (2, 25, 25) and mask.sum(dim=1).tolist() == [25, 13]
    assert torch.equal(logits, torch.nn.functional.linear(expected, *(model.heads["ctc"].linear.parameters())))
    units = model.tokenizer.encode(TEXTS[0])
    assert min(units) > 0 and model.tokenizer.decode(units) == TEXTS[0]
    assert units == [piece + 1 for piece in BPE(tokenizer).encode(TEXTS[0])]
    again = saved_again(model, tmp_path / "saved")
    assert again.tokenizer.decode(units) == TEXTS[0] and again.tokenizer.model == tokenizer


def test_the_encoder_of_a_transducer_starts_a_model(tmp_path):
    """A .nemo without a CTC layer is no recogniser here, and its encoder as good a start as any."""
    encoder, _, _ = nemo_file(tmp_path / "model.nemo")
    with tarfile.open(tmp_path / "model.nemo") as archive, tarfile.open(tmp_path / "rnnt.nemo", "w") as other:
        for member in archive:
            content = archive.extractfile(member).read()
            if member.name.endswith(".ckpt"):
                weights = torch.load(io.BytesIO(content), weights_only=True)
                kept = {name: value for name, value in weights.items() if not name.startswith("decoder")}
                torch.save(kept | {"joint.enc.weight": torch.zeros(3, 32)}, checkpoint := io.BytesIO())
                content = checkpoint.getvalue()
            member.size = len(content)
            other.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match=r"has no CTC layer .*backbone: \{pretrained"):
        load_pretrained(tmp_path / "rnnt.nemo")
    front = load_pretrained(tmp_path / "model.nemo").parts["frontend"]
    model = create_model(front, {"pretrained": str(tmp_path / "rnnt.nemo")}, {"name": "ctc", "vocab": 7})
    state = encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())
    assert model.backbone.features == front


@pytest.mark.filterwarnings("ignore")
def test_a_parakeet_folder(tmp_path):
    import_timm()
    transformers = pytest.importorskip("transformers")
    config = transformers.ParakeetCTCConfig(
        vocab_size=9,
        pad_token_id=8,
        encoder_config=dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            subsampling_conv_channels=8,
        ),
    )
    theirs = transformers.ParakeetForCTC(config).eval()
    scramble(theirs)
    theirs.save_pretrained(tmp_path / "parakeet")
    pieces = ["<unk>", "▁the", "▁cat", "s", "▁a", "▁dog", "▁on", "▁mat"]
    vocab = {"model": {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}}}
    (tmp_path / "parakeet" / "tokenizer.json").write_text(json.dumps(vocab))
    extractor = {"feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": 80, "sampling_rate": RATE}
    (tmp_path / "parakeet" / "preprocessor_config.json").write_text(json.dumps(extractor))
    model = load_pretrained(str(tmp_path / "parakeet"))
    with torch.no_grad():
        features = model.frontend(*batch())
        expected = theirs(input_features=features.x, attention_mask=features.mask).logits
        found = answers(model)
    real = model.backbone(features.x, features.mask)[1]
    worst = float((found[..., 1:] - expected[..., :8])[real].abs().max())
    worst = max(worst, float((found[..., 0] - expected[..., 8])[real].abs().max()))
    print(f"parakeet logits {worst:.1e}")
    assert worst <= 1e-4
    assert model.tokenizer.decode([2, 3, 4, 0, 7]) == "the cats on"
    assert saved_again(model, tmp_path / "saved").tokenizer.decode([2, 6]) == "the dog"


def ours(**backbone) -> torch.nn.Module:
    torch.manual_seed(0)
    part = {"name": "squeezeformer", "dim": 16, "depth": 4, "heads": 2, "kernel": 5, "reduce_at": 1} | backbone
    model = create_model({"name": "logmel"}, part, {"name": "ctc", "vocab": 5})
    scramble(model)
    return model.eval()


def test_our_own_folder_and_its_card(tmp_path):
    saved_again(ours(), tmp_path / "new" / "folder")
    save_pretrained(ours(), tmp_path / "card", {"WER, test-clean": "3.1 %", "data": "LibriSpeech"})
    card = (tmp_path / "card" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: seqformer\n") and "| WER, test-clean | 3.1 % |" in card
    assert "squeezeformer" in card and 'load_pretrained("' in card
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_transcription_reads_the_block_that_the_head_reads(tmp_path):
    file = str(tmp_path / "noise.wav")
    soundfile.write(file, 0.1 * np.random.default_rng(0).normal(size=RATE), RATE)
    part = {"name": "conformer", "dim": 16, "depth": 3, "heads": 2}
    torch.manual_seed(0)
    model = create_model({"name": "logmel"}, part, {"name": "ctc", "vocab": 5, "at": 0}).eval()
    model.tokenizer = Characters("abcd")
    samples = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]
    mask = torch.ones_like(samples, dtype=torch.bool)
    features, texts = model.frontend({"x": samples}, mask), []
    for logits in (model({"x": samples}, mask)["ctc"], model.heads["ctc"](*model.backbone(features.x, features.mask))):
        units = [int(unit) for unit in torch.unique_consecutive(logits[0].argmax(dim=-1)) if unit]
        texts.append(model.tokenizer.decode(units))
    assert texts[0] != texts[1]  # the last block says something else
    assert transcribe_files(model, [file]) == {file: texts[0]}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something other than a saved model"):
        save_pretrained(ours(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    save_pretrained(ours(), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())

    def faulty(**changes) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((tmp_path / "saved" / "model.safetensors").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    deeper = config["model"] | {"backbone": config["model"]["backbone"] | {"depth": 5}}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.nemo").write_bytes(b"no archive")
    for source, words in (
        (tmp_path / "nothing", "no checkpoint at"),
        ("missing.nemo", "no checkpoint at missing.nemo"),
        (tmp_path / "empty", "holds no config.json and 0 .nemo files"),
        (tmp_path / "file.nemo", "file.nemo"),
        (faulty(format="other"), "config.json is of 'other'; expected format 'seqformer 1'"),
        (faulty(model={}), "no section model"),
        (faulty(model=deeper), r"\d+ missing: backbone.blocks.4.*strict=False loads what fits"),
        (faulty(model=config["model"] | {"backbone": {"name": "squeezeformers"}}), "unknown backbone"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_pretrained(source)
        assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="loaded in part"):
        load_pretrained(faulty(model=deeper), strict=False)
    by_hand = seqformer.SequenceModel(ours().frontend, ours().backbone, {}, {})
    with pytest.raises(InputError, match="only a model of create_model"):
        save_pretrained(by_hand, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_hub_is_asked_only_by_name(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    sent, asked = [], []
    held = {
        "owner/name": ["config.json", "model.safetensors", "same.nemo"],
        "owner/archive": ["README.md", "model.nemo"],
    }
    monkeypatch.setattr(hub, "list_repo_files", held.__getitem__)
    monkeypatch.setattr(hub, "create_repo", lambda repo_id, **k: sent.append((repo_id, k)))

    def upload_folder(repo_id, folder_path):
        load_pretrained(folder_path)
        sent.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    def snapshot_download(repo_id, allow_patterns):
        asked.append(allow_patterns)
        if repo_id == "owner/archive":
            (tmp_path / "archive").mkdir()
            nemo_file(tmp_path / "archive" / "model.nemo")
            return str(tmp_path / "archive")
        save_pretrained(ours(), tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    push_to_hub(ours(), "owner/name", private=True)
    assert sent == [
        ("owner/name", {"private": True, "exist_ok": True}),
        ("owner/name", ["README.md", "config.json", "model.safetensors"]),
    ]
    assert torch.equal(answers(load_pretrained("owner/name")), answers(ours()))
    assert load_pretrained("owner/archive").tokenizer is not None
    assert asked == [["*.json", "*.safetensors", "*.model", "*.txt"], ["*.nemo"]]  # the same weights once, and no code


def test_frozen_blocks_stay_and_layer_decay_slows_the_lower_ones(tmp_path):
    save_pretrained(ours(), tmp_path / "saved")
    part = {"pretrained": str(tmp_path / "saved"), "freeze": 2, "layer_decay": 0.5}
    model = create_model({"name": "logmel"}, part, {"name": "ctc", "vocab": 7})
    source = ours().backbone.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in model.backbone.state_dict().items())
    fine_tune(model)
    model.train()
    changed = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, source[name])}
    sections = {".".join(name.split(".")[:2]) for name in changed}
    assert sections == {"blocks.2", "blocks.3", "recoveries.0"}  # statistics of BatchNorm included
    assert not any(module.training for block in model.backbone.blocks[:2] for module in block.modules())
    scales = lr_scales(model)
    assert scales["backbone.blocks.3.branches.0.query.weight"] == 0.5 and scales["heads.ctc.linear.weight"] == 1
    assert scales["backbone.blocks.0.branches.0.query.weight"] == 0.5**4 == 2 * scales["backbone.stem.first.weight"]
    assert scales["backbone.recoveries.0.linear.weight"] == 0.5
    rates = {group["lr_scale"]: len(group["params"]) for group in make_optimizer(model, Optim()).param_groups}
    assert set(rates) == {1.0, 0.5, 0.25}
    for changes, words in (({"freeze": 5}, "freeze: found 5; .* has 4 blocks"), ({"pretraned": "x"}, "no argument")):
        with pytest.raises(InputError, match=words):
            create_model({"name": "logmel"}, part | changes, {"name": "ctc", "vocab": 7})
    with pytest.raises(InputError, match="takes 80 features a frame, and the frontend gives 40"):
        create_model({"name": "logmel", "mels": 40}, part, {"name": "ctc", "vocab": 7})


def test_a_run_starts_from_a_checkpoint_and_never_needs_it_again(tiny, tmp_path, monkeypatch):
    plain = change(tiny(), train__epochs=1)
    source = create_model(plain["frontend"], plain["backbone"], {"name": "ctc", "vocab": 4})
    save_pretrained(source, tmp_path / "saved")
    plain["backbone"] = {"pretrained": str(tmp_path / "saved"), "freeze": 1, "layer_decay": 0.9}
    said = []
    monkeypatch.setattr(RunLog, "say", lambda self, line: said.append(line))
    train_run(plain, tmp_path / "runs", quiet=True)
    assert not any("the checkpoint was trained on" in line for line in said)
    other = change(plain, frontend__normalize="bin", run="other")
    train_run(other, tmp_path / "runs", quiet=True)
    assert any("trained on features with normalize 'utterance';" in line for line in said), said
    first = source.backbone.state_dict()
    (tmp_path / "saved").rename(tmp_path / "gone")
    trained = TrainedRun(tmp_path / "runs" / plain["run"])
    for model, _ in trained.folds():
        state = model.backbone.state_dict()
        same = {name for name in state if torch.equal(state[name], first[name])}
        assert any(name.startswith("stem") for name in same) and all(
            name in same for name in state if name.startswith(("stem", "blocks.0."))
        )
        assert same < set(state)
    # Resuming reads what the run remembers, too.
    fold = sorted((tmp_path / "runs" / plain["run"]).glob("*/done.json"))[0]
    fold.unlink()
    train_run(plain, tmp_path / "runs", quiet=True)
    assert fold.exists() and np.isfinite(json.loads(fold.read_text())["epochs"])
