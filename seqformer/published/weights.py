"""Published weights and configs, in the publishers' own names and layouts -> our encoder.

| source | implementation | encoders |
|---|---|---|
| squeezeformer_tf | the official Squeezeformer repository, Keras layouts | Squeezeformer, Conformer-CTC |
| nemo | NVIDIA NeMo | Conformer, FastConformer, Squeezeformer |
| parakeet_hf | Hugging Face transformers | Parakeet (FastConformer), its CTC head aside |
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqformer.backbones.encoder import Encoder
from seqformer.errors import InputError, nearest
from seqformer.published import nemo, parakeet_hf, squeezeformer_tf

Source = Literal["squeezeformer_tf", "nemo", "parakeet_hf"]
_SOURCES = {"squeezeformer_tf": squeezeformer_tf, "nemo": nemo, "parakeet_hf": parakeet_hf}
# Not weights: counters and tables that are computed.
_COMPUTED = re.compile(r"(num_batches_tracked|pos_enc\.pe|inv_freq|seq_range)$")


def import_backbone(
    weights: Mapping[str, Any], source: Source, config: Mapping[str, Any], strict: bool = True
) -> Encoder:
    """The publisher's encoder with its weights, computing as the publisher does (see ``Encoder``'s conventions).

    weights: name -> array or tensor, the publisher's names, of the encoder or of a whole model; config: the
    publisher's own option names, of the encoder or of the whole model. Raises InputError on an option that changes
    the result and is not supported, and when weights are missing, left over or of another shape; with ``strict``
    False those are left as initialised and listed in a warning.
    """
    if source not in _SOURCES:
        raise InputError(f"unknown source {source!r}; {nearest(source, _SOURCES)}")
    publisher = _SOURCES[source]
    weights = _encoder_weights(weights)
    try:
        settings = publisher.settings_of(encoder_config(config), weights)
        _check_depth(settings["depth"], weights, source)
        # On meta, for nothing: the weights say whether sizes that a stranger's config names are meant.
        with torch.device("meta" if strict else "cpu"):
            encoder = Encoder(**settings)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} config: {' '.join(str(error).split())}") from error
    state = {}
    for name, value in weights.items():
        if not _COMPUTED.search(name):
            ours = publisher.our_name(name, settings)
            value = torch.as_tensor(value)
            state[ours or name] = publisher.our_value(ours, value, settings) if ours else value
    fit_weights(encoder, state, f"{source} weights", strict)
    encoder.part = {"name": "squeezeformer"} | settings  # whose defaults are the encoder's
    return encoder


def _check_depth(depth: int, weights: Mapping[str, Any], source: str) -> None:
    """Raise InputError when the weights hold another number of blocks than the config says."""
    held = {int(found[1]) for name in weights if (found := re.search(r"^(?:layers|conformer_blocks)\.(\d+)\.", name))}
    if depth != len(held):
        raise InputError(f"{source} config says {depth} blocks, and the weights hold {len(held)}")


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], where: str, strict: bool = True) -> None:
    """Load weights into a model, all of them or none; one on the meta device takes copies of them for its own.

    Raises InputError naming the first five that are missing, left over, or of another shape; with ``strict`` False
    what fits is loaded and the rest listed in a warning.
    """
    wanted = model.state_dict()
    state = {name: _without_ones(value, wanted[name]) if name in wanted else value for name, value in state.items()}
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in state],
        "left over": [name for name in state if name not in wanted],
        "of another shape": shapes,
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in faults.items()
        if names
    ]
    if found and strict:
        raise InputError(f"{where} do not fit the model; {'; '.join(found)}; strict=False loads what fits")
    if found:
        warnings.warn(f"{where} loaded in part; {'; '.join(f'{k}: {v}' for k, v in faults.items() if v)}", stacklevel=2)
    fitting = {name: value for name, value in state.items() if name in wanted and value.shape == wanted[name].shape}
    on_meta = any(value.is_meta for value in wanted.values())
    if on_meta:
        # Laid out as our own: a publisher's may be the transpose of theirs.
        layout = {"copy": True, "memory_format": torch.contiguous_format}
        fitting = {name: value.to(wanted[name].dtype, **layout) for name, value in fitting.items()}
    model.load_state_dict(fitting, strict=False, assign=on_meta)


def _without_ones(value: Tensor, like: Tensor) -> Tensor:
    """A pointwise convolution (O, I, 1, ...) is the linear layer (O, I)."""
    squeezed = value.dim() > like.dim() and [n for n in value.shape if n != 1] == [n for n in like.shape if n != 1]
    return value.reshape(like.shape) if squeezed else value


def encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's own options, out of a model's config where that is given."""
    for key in ("encoder", "encoder_config", "model_config", "kwargs", "config"):
        if isinstance(config.get(key), Mapping):
            return encoder_config(config[key])
    return dict(config)


def _encoder_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's own weights, out of a model's where those are given."""
    inner = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    return inner or dict(weights)
