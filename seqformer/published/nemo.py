"""NVIDIA NeMo's encoders: ConformerEncoder (Conformer, FastConformer) and SqueezeformerEncoder."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqformer.errors import InputError
from seqformer.published.options import choose, require

BRANCHES = {
    "conformer": ("feed_forward1", "self_attn", "conv", "feed_forward2"),
    "squeezeformer": ("self_attn", "feed_forward1", "conv", "feed_forward2"),
}
NORMS = {
    "feed_forward1": "norm_feed_forward1",
    "self_attn": "norm_self_att",
    "conv": "norm_conv",
    "feed_forward2": "norm_feed_forward2",
}
PARTS = {
    "linear_q": "query",
    "linear_k": "key",
    "linear_v": "value",
    "linear_out": "out",
    "linear_pos": "position",
    "pos_bias_u": "content_bias",
    "pos_bias_v": "position_bias",
    "linear1": "expand",
    "linear2": "project",
    "pointwise_conv1": "expand",
    "depthwise_conv": "depthwise",
    "batch_norm": "norm",
    "pointwise_conv2": "project",
}
TOP = {
    "pre_encode.out": "stem.linear",
    "pre_encode": "stem.linear",  # no subsampling: one linear layer
    "pre_ln": "norm",
    "time_reduce_layer.dw_conv": "reductions.0.depthwise",
    "time_reduce_layer.pw_conv": "reductions.0.pointwise",
    "time_recovery_layer": "recoveries.0.linear",
}
# Options that would change the result, and the values that do not; the first is NeMo's own.
FIXED = {
    "causal_downsampling": (False, None),
    "reduction": (None, False),
    "att_context_style": ("regular", None),
    "global_tokens": (0, None),
    "ff_activation": ("swish", "silu", None),
}


def settings_of(config: dict[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``Encoder``. Raises InputError on an option without a counterpart."""
    dim, depth = require(config, "d_model", "nemo config"), require(config, "n_layers", "nemo config")
    squeezed = "pre_ln.weight" in weights  # Squeezeformer has it, Conformer does not; the options may say neither
    for key, allowed in (FIXED | {"feat_out": (-1, None, dim)}).items():
        choose(config, key, allowed[0], dict.fromkeys(allowed), "nemo config")
    positions = {"rel_pos": "xl", "rel_pos_local_attn": "xl"}
    bias = bool(config.get("use_bias", True))
    found = dict(
        in_dim=require(config, "feat_in", "nemo config"),
        dim=dim,
        depth=depth,
        heads=config.get("n_heads", 4),
        positions=choose(config, "self_attention_model", "rel_pos", positions, "nemo config"),
        context=_context(config.get("att_context_size")),
        kernel=config.get("conv_kernel_size", 31),
        causal=_causal(config),
        conv_norm=choose(
            config, "conv_norm_type", "batch_norm", {"batch_norm": "batch", "layer_norm": "layer"}, "nemo"
        ),
        ff_factor=config.get("ff_expansion_factor", 4),
        scale_input=bool(config.get("xscaling", True)),
        attention_bias=bias,
        conv_bias=bias,
        ff_bias=bias,
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("dropout_att", 0.0),
        convention="nemo",
    )
    found |= _stem(config, squeezed)
    if not squeezed:
        return found | dict(layout="fACf", norm_at="pre", conv_activation="glu", input_norm=False)
    scaled = config.get("adaptive_scale", True)
    return found | dict(
        layout="AFCF",
        norm_at="post_scale_in" if scaled else "post",
        conv_activation="swish",
        input_norm=True,
        reduce_at=config.get("time_reduce_idx"),
        recover_at=config.get("time_recovery_idx"),
    )


def _stem(config: dict[str, Any], squeezed: bool) -> dict[str, Any]:
    factor = config.get("subsampling_factor", 4)
    kind = config.get("subsampling", "dw_striding" if squeezed else "striding")
    if not kind or factor == 1:
        return dict(stem="linear")
    kinds = {"striding": "conv2d", "dw_striding": "depthwise_conv2d"}
    channels = config.get("subsampling_conv_channels", -1)
    return dict(
        stem=choose({"subsampling": kind}, "subsampling", None, kinds, "nemo config"),
        stem_stride=factor,
        stem_channels=None if channels == -1 else channels,
    )


def _context(size: Any) -> tuple[int, int] | None:
    """Left and right; of several, trained together for streaming, the first, as NeMo uses by default."""
    if size is None:
        return None
    left, right = size[0] if isinstance(size[0], list | tuple) else size
    return None if left < 0 and right < 0 else (left, right)


def _causal(config: dict[str, Any]) -> bool:
    size, kernel = config.get("conv_context_size"), config.get("conv_kernel_size", 31)
    if size is None or list(size) == [(kernel - 1) // 2] * 2:
        return False
    if size == "causal" or list(size) == [kernel - 1, 0]:
        return True
    raise InputError(f"nemo config: conv_context_size is {size}, which is not supported; it may be null or 'causal'")


def our_name(name: str, settings: dict[str, Any]) -> str | None:
    """Our name of a weight, None when there is none."""
    layer = re.fullmatch(r"layers\.(\d+)\.(\w+)\.?(.*)", name)
    if layer:
        number, part, rest = layer.groups()
        branches = BRANCHES["conformer" if settings["norm_at"] == "pre" else "squeezeformer"]
        side = "before" if settings["norm_at"] == "pre" else "after"
        places = {branch: f"branches.{index}" for index, branch in enumerate(branches)}
        places |= {NORMS[branch]: f"{side}.{index}" for index, branch in enumerate(branches)}
        places |= {f"{branch}_scale": f"before.{index}" for index, branch in enumerate(branches)}
        places["norm_out"] = "final"
        first, _, last = rest.partition(".")
        inner = ".".join(piece for piece in (PARTS.get(first, first), last) if piece)
        return f"blocks.{number}.{places[part]}.{inner}" if part in places else None
    conv = re.fullmatch(r"pre_encode\.conv\.(\d+)\.(weight|bias)", name)
    if conv:
        return _stem_name(int(conv[1]), settings["stem"] == "depthwise_conv2d") + conv[2]
    place = max((known for known in TOP if name.startswith(f"{known}.")), key=len, default=None)
    return name.replace(place, TOP[place], 1) if place else None


def _stem_name(index: int, depthwise: bool) -> str:
    """NeMo's stem is one list, ReLUs included: conv, ReLU, then depthwise, pointwise, ReLU or conv, ReLU, and again."""
    if index == 0:
        return "stem.first."
    stage, place = divmod(index - 2, 3 if depthwise else 2)
    return f"stem.pointwise.{stage}." if place else f"stem.convs.{stage}."


def our_value(ours: str, value: Tensor, settings: dict[str, Any]) -> Tensor:
    """A weight in our layout."""
    if ours == "stem.linear.weight" and settings["stem"] != "linear":  # columns are (C, F) there and (F, C) here
        channels = settings["stem_channels"] or settings["dim"]
        if value.shape[1] % channels == 0:
            return value.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)
    return value
