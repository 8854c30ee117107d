"""Whole checkpoints, ours and the publishers': load, save, push, and start a run from one.

| given to ``load_pretrained`` | what it is |
|---|---|
| a ``.nemo`` file | NeMo's archive of a CTC model (of a hybrid one, its CTC half) |
| a folder with ``model_type: parakeet_ctc`` in config.json | Hugging Face Parakeet |
| a folder that ``save_pretrained`` wrote | ours |
| ``owner/name``, where there is no such folder | any of the three, from the Hugging Face hub |
"""

import json
import re
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqformer.batch import Batch
from seqformer.data.audio import read_audio
from seqformer.data.folder import replace_folder
from seqformer.data.text import BPE, Pieces, Tokenizer, load_tokenizer
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError
from seqformer.model import TRANSCRIBERS, SequenceModel, build_part, create_backbone, create_model
from seqformer.published.archive import Published, plain_json, read_folder, read_nemo
from seqformer.published.features import logmel_of_nemo, logmel_of_parakeet
from seqformer.published.weights import encoder_config, fit_weights, import_backbone
from seqformer.registry import register

FORMAT = "seqformer 1"
CTC_LAYERS = {
    "nemo": ("decoder.decoder_layers.0", "ctc_decoder.decoder_layers.0"),  # the second of hybrid models
    "parakeet_hf": ("ctc_head",),
}
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]  # of a repository without safetensors its .nemo alone


def load_pretrained(source: str | Path, strict: bool = True) -> SequenceModel:
    """A checkpoint as a model in eval mode, its tokenizer, where it has one, as ``model.tokenizer``.

    Publishers count the CTC blank last; here it is unit 0, and their unit u is u + 1. Nothing in a checkpoint is
    executed. Raises InputError when there is none, it is damaged, of an unknown kind, or its weights do not fit
    (``strict`` False loads what fits and lists the rest in a warning).
    """
    kind, found, where = _opened(source)
    if kind == "ours":
        return _load_ours(found, where, strict)
    backbone = import_backbone(found.weights, kind, found.config, strict)
    head = _ctc_weights(found, kind, where)
    pieces = len(head["bias"]) - 1
    tokenizer = _nemo_tokenizer(found, pieces) if kind == "nemo" else _parakeet_tokenizer(found, pieces, where)
    return _assembled(_features(found, kind, where), backbone, head, tokenizer, where)


def transcribe_files(model: SequenceModel, files: list[str], decoder: BeamDecoder | None = None) -> dict[str, str]:
    """{file: what a CTC or transducer model with a tokenizer reads from it}, one at a time, greedily or with a decoder.

    Raises InputError when the model takes no audio, has no such head or no tokenizer, or a file cannot be read.
    """
    rate, head = getattr(model.frontend, "rate", None), model.text_head
    if rate is None or head is None or model.tokenizer is None:
        raise InputError(f"the checkpoint turns no audio into text: {TRANSCRIBERS}")
    found, device = {}, next(model.parameters()).device
    for file in files:
        samples = torch.from_numpy(read_audio(file, rate)[0])[None]
        batch = Batch([file], {"x": samples}, torch.ones_like(samples, dtype=torch.bool), {}, torch.ones(1))
        batch = batch.to(device)
        if decoder is None:
            found[file] = model.tokenizer.decode(model.predict(batch)[head][0])
        else:
            heard = [item.cpu().numpy() for item in model.heard(batch, head)]
            (found[file],) = decoder.texts(heard, model.tokenizer, model.search(head))
    return found


def save_pretrained(model: SequenceModel, folder: str | Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write config.json, model.safetensors and a model card that ``load_pretrained`` and a person can read.

    ``facts`` go into the card's table: scores, data, licence. The folder appears whole or not at all. Raises
    InputError when the model was not made by ``create_model`` or the folder holds something else.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if model.parts is None:
        raise InputError("only a model of create_model or load_pretrained can be saved: of others no parts are known")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise InputError(f"{folder} holds something other than a saved model; choose an empty or a new folder")
    config = {"format": FORMAT, "library_name": "seqformer", "model": model.parts}
    if model.tokenizer is not None:
        config["tokenizer"] = model.tokenizer.state()
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replace_folder(folder) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (partial / "model.safetensors").write_bytes(save(weights))
        (partial / "README.md").write_text(model_card(model, folder.name, facts or {}))


def push_to_hub(
    model: SequenceModel, repo_id: str, facts: Mapping[str, Any] | None = None, private: bool = False
) -> None:
    """Upload what ``save_pretrained`` writes to ``repo_id`` (owner/name) on the Hugging Face hub.

    Uses the token of ``huggingface-cli login``. Raises InputError when huggingface_hub is not installed.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo_id.split("/")[-1]
        save_pretrained(model, folder, facts)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo_id, folder_path=folder)


def model_card(model: SequenceModel, name: str, facts: Mapping[str, Any]) -> str:
    """A README in the hub's form: what the model is, how to use it, and the given facts."""
    frontend, backbone = (model.parts[part]["name"] for part in ("frontend", "backbone"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {"frontend": frontend, "backbone": backbone, "heads": ", ".join(model.heads), **facts}
    rows |= {"parameters": f"{parameters:,}", "frames out": f"one of {model.backbone.stride}"}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: seqformer\ntags: [seqformer, {backbone}]\n---\n\n# {name}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        '```python\nimport seqformer\n\nmodel = seqformer.load_pretrained("PATH OR owner/name")\n```\n\n'
        "To start a run from it: `backbone: {pretrained: PATH}`.\n"
    )


@register("backbone")
def pretrained(
    in_dim: int,
    pretrained: str,
    freeze: int = 0,
    layer_decay: float = 1.0,
    dropout: float | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """The backbone of a checkpoint: ``backbone: {pretrained: PATH, freeze: 4, layer_decay: 0.9}`` in a config.

    The heads of the checkpoint play no part: a transducer's encoder is as good as another.
    ``freeze`` leaves the stem and so many blocks as they are, in eval mode; ``layer_decay`` multiplies the learning
    rate once per block below the top. ``settings`` is what a run remembers of the architecture: then the checkpoint
    is not read, for the run has its own weights. Raises InputError when the checkpoint takes another width.
    """
    if settings is None:
        backbone = _load_backbone(pretrained)
    else:
        backbone = create_backbone(**settings)
        backbone.part = dict(settings)
    made = backbone.part
    if made["in_dim"] != in_dim:
        raise InputError(f"{pretrained} takes {made['in_dim']} features a frame, and the frontend gives {in_dim}")
    if dropout is not None:
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    if not 0 <= freeze <= len(backbone.blocks):
        raise InputError(f"freeze: found {freeze}; {pretrained} has {len(backbone.blocks)} blocks")
    if freeze:
        freeze_first(backbone, freeze)
    backbone.layer_decay = layer_decay
    return backbone


def freeze_first(backbone: nn.Module, blocks: int) -> None:
    """Leave the stem and the first blocks as they are: no gradients, no dropout, no new statistics."""
    frozen = [getattr(backbone, name) for name in ("stem", "norm") if hasattr(backbone, name)]
    for places, name in (("reduce_at", "reductions"), ("recover_at", "recoveries")):
        between = getattr(backbone, name, ())  # ContextNet reduces inside its blocks
        frozen += [module for number, module in enumerate(between) if getattr(backbone, places)[number] < blocks]
    for module in [*frozen, *backbone.blocks[:blocks]]:
        module.requires_grad_(False)
        for part in module.modules():
            part.training = False
        # model.train() reaches every module through its own train(): these stay in eval mode.
        module.train = types.MethodType(lambda self, mode=True: self, module)


def _opened(source: str | Path) -> tuple[str, Published, str]:
    """Whose a checkpoint is (``ours`` or a source of import_backbone), what it holds, and its place."""
    path = _find(source)
    if path.suffix == ".nemo":
        return "nemo", read_nemo(path), str(path)
    found = read_folder(path)
    if found.config.get("format") == FORMAT:
        return "ours", found, str(path)
    kind = found.config.get("model_type", found.config.get("format"))
    if not str(kind).startswith("parakeet"):
        raise InputError(f"{path}: config.json is of {kind!r}; expected format {FORMAT!r} or model_type 'parakeet_ctc'")
    return "parakeet_hf", found, str(path)


def _find(source: str | Path) -> Path:
    """The file or folder of a checkpoint, fetched from the hub where it is named as there and is not here."""
    path = Path(source)
    if path.suffix == ".nemo" and not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise InputError(f"no checkpoint at {path}")
        path = _fetched(str(source))
    if path.is_dir() and not (path / "config.json").is_file():
        archives = sorted(path.glob("*.nemo"))
        if len(archives) != 1:
            raise InputError(f"{path} holds no config.json and {len(archives)} .nemo files; one of either is needed")
        return archives[0]
    return path


def _fetched(repo_id: str) -> Path:
    """The folder of a hub repository's files, as few as do: one may hold the same gigabytes in several forms."""
    hub = _hub()
    tensors = any(name.endswith(".safetensors") for name in hub.list_repo_files(repo_id))
    return Path(hub.snapshot_download(repo_id, allow_patterns=HUB_FILES if tensors else ["*.nemo"]))


def _hub():
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("the hub needs huggingface_hub: pip install 'seqformer[hub]'") from error
    return huggingface_hub


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def _load_ours(found: Published, where: str, strict: bool) -> SequenceModel:
    parts = found.config.get("model")
    if not isinstance(parts, dict) or {"frontend", "backbone", "head"} - parts.keys():
        raise InputError(f"{where}: config.json has no section model with frontend, backbone and head")
    model = create_model(**{key: parts[key] for key in ("frontend", "backbone", "head")})
    fit_weights(model, found.weights, where, strict)
    if "tokenizer" in found.config:
        model.tokenizer = load_tokenizer(found.config["tokenizer"])
    return model.eval()


def _load_backbone(source: str | Path) -> nn.Module:
    """The backbone alone; the frontend it was trained behind is its ``features``, for a run to compare its own with."""
    kind, found, where = _opened(source)
    if kind == "ours":
        model = _load_ours(found, where, strict=True)
        backbone, features = model.backbone, model.parts["frontend"]
    else:
        backbone, features = import_backbone(found.weights, kind, found.config), _features(found, kind, where)
    backbone.features = features
    return backbone.train()


def _features(found: Published, kind: str, where: str) -> dict[str, Any]:
    """The frontend that the publisher's own preprocessor is here."""
    if kind == "nemo":
        return {"name": "logmel"} | logmel_of_nemo(found.config.get("preprocessor") or {})
    settings = {}
    for name, section in (("processor_config.json", "feature_extractor"), ("preprocessor_config.json", None)):
        if name in found.files:
            held = plain_json(found.files[name], f"{where}/{name}")
            settings = held.get(section, {}) if section else held
    bins = {"feature_size": encoder_config(found.config).get("num_mel_bins", 80)}
    return {"name": "logmel"} | logmel_of_parakeet(bins | settings)


def _assembled(
    frontend: dict[str, Any], backbone: nn.Module, head: dict[str, Tensor], tokenizer: Tokenizer | None, where: str
) -> SequenceModel:
    """A model around an imported backbone, with the publisher's CTC layer as its head."""
    front = build_part("frontend", frontend)
    part = dict(backbone.part)
    if (width := part.pop("in_dim")) != front.dim:
        raise InputError(f"{where}: the features have {front.dim} bins, and the encoder takes {width}")
    ctc = {"name": "ctc", "vocab": len(head["bias"])}
    model = SequenceModel(front, backbone, {"ctc": build_part("head", ctc, dim=backbone.dim)}, {"ctc": 1.0})
    fit_weights(model.heads["ctc"].linear, head, f"{where}: CTC layer")
    model.parts = {"frontend": frontend, "backbone": part, "head": ctc}
    model.tokenizer = tokenizer
    return model.eval()


def _ctc_weights(found: Published, kind: str, where: str) -> dict[str, Tensor]:
    """Weight (V, D) and bias (V,) of a CTC layer, its blank put first: NeMo's is the last unit, Parakeet's is named."""
    places = CTC_LAYERS[kind]
    for place in places:
        if f"{place}.weight" in found.weights and f"{place}.bias" in found.weights:
            weight, bias = (found.weights[f"{place}.{name}"].float() for name in ("weight", "bias"))
            size = len(bias)
            blank = found.config.get("pad_token_id", size - 1) if kind == "parakeet_hf" else size - 1
            if weight.dim() < 2 or len(weight) != size or type(blank) is not int or not 0 <= blank < size:
                raise InputError(
                    f"{where}: CTC layer {place} has shapes {tuple(weight.shape)}, {tuple(bias.shape)}, blank {blank}"
                )
            order = [blank, *(unit for unit in range(size) if unit != blank)]
            return {"weight": weight.flatten(1)[order], "bias": bias[order]}
    raise InputError(
        f"{where} has no CTC layer ({' or '.join(places)}); for its encoder alone: backbone: {{pretrained: ...}}"
    )


def _nemo_tokenizer(found: Published, pieces: int) -> Tokenizer | None:
    """The SentencePiece model of an archive, or the characters of its config; None when it has neither."""
    models = [content for name, content in found.files.items() if name.endswith("tokenizer.model")]
    if models:
        return BPE(models[0], shift=1)
    section = found.config.get("decoder") or {}
    symbols = found.config.get("labels") or section.get("vocabulary")
    if isinstance(symbols, list) and len(symbols) == pieces:
        return Pieces([str(symbol) for symbol in symbols])
    return None


def _parakeet_tokenizer(found: Published, pieces: int, where: str) -> Tokenizer | None:
    """The pieces of a fast tokenizer, unit u + 1 here being its u; None when it holds none in a form we know."""
    if "tokenizer.json" not in found.files:
        return None
    model = plain_json(found.files["tokenizer.json"], f"{where}/tokenizer.json").get("model") or {}
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        numbers = {number: piece for piece, number in vocab.items()}
    elif isinstance(vocab, list):
        numbers = {number: pair[0] for number, pair in enumerate(vocab)}
    else:
        return None
    return Pieces([str(numbers.get(number, "")) for number in range(pieces)])
