"""The official Squeezeformer repository: Squeezeformer and its Conformer-CTC baseline, Keras names and layouts."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqformer.errors import InputError
from seqformer.published.options import choose, require

TOP = {
    "conv_subsampling.conv1": "stem.first",
    "conv_subsampling.conv2": "stem.convs.0",
    "conv_subsampling.dw_conv": "stem.convs.0",
    "conv_subsampling.pw_conv": "stem.pointwise.0",
    "linear": "stem.linear",
    "pre_ln": "norm",
}
PARTS = {
    "mha.projection_kernel": "out.weight",
    "mha.projection_bias": "out.bias",
    "mha.pos_kernel": "position.weight",
    "mha.pos_bias_u": "content_bias",
    "mha.pos_bias_v": "position_bias",
    "mha": "",
    "ffn1": "expand",
    "ffn2": "project",
    "pw_conv_1": "expand",
    "dw_conv": "depthwise",
    "bn": "norm",
    "pw_conv_2": "project",
}
LEAVES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The repository's block is a row of four layers: m attention, c convolution, f feed-forward, s nothing, and M and C
# with a feed-forward inside and a LayerNorm after either.
ARCHITECTURES = {("f", "m", "c", "f"): "conformer", ("M", "s", "C", "s"): "squeezeformer"}


def settings_of(config: dict[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``Encoder``. Raises InputError on an option without a counterpart."""
    names = {key.removeprefix("encoder_"): value for key, value in config.items()}
    dim, depth = (
        require(names, "dmodel", "squeezeformer_tf config"),
        require(names, "num_blocks", "squeezeformer_tf config"),
    )
    architecture = names.get("fixed_arch") or ["m", "f", "c", "f"]
    rows = {tuple(row) for row in (architecture if isinstance(architecture[0], list) else [architecture])}
    if len(rows) > 1 or not rows <= set(ARCHITECTURES):
        raise InputError(
            f"squeezeformer_tf config: fixed_arch is {sorted(rows)}, which is not supported; it may be "
            + " or ".join(map(str, ARCHITECTURES))
        )
    kind = ARCHITECTURES[rows.pop()]
    squeezed = kind == "squeezeformer"
    # What else the two architectures were published with.
    fixed = {
        "mha_type": "relmha",
        "fc_factor": 1.0 if squeezed else 0.5,
        "adaptive_scale": squeezed,
        "no_post_ln": squeezed,
    }
    for key, value in fixed.items():
        choose(names, key, value, {value: value}, "squeezeformer_tf config")
    filters = (names.get("subsampling") or {}).get("filters", dim)
    return dict(
        in_dim=80,  # the repository's stem accepts nothing else
        dim=dim,
        depth=depth,
        heads=require(names, "num_heads", "squeezeformer_tf config"),
        layout="AFCF" if squeezed else "fACf",
        norm_at="post_scale_in" if squeezed else "pre",
        kernel=names.get("kernel_size", 31),
        conv_activation="glu" if names.get("conv_use_glu") else "swish",
        stem="depthwise_conv2d" if names.get("ds_subsample") else "conv2d",
        stem_channels=filters,
        reduce_at=_places(names.get("time_reduce_idx")),
        recover_at=_places(names.get("time_recover_idx")),
        dropout=names.get("dropout", 0.0),
        convention="squeezeformer_tf",
    )


def _places(blocks: int | list[int] | None) -> list[int]:
    """No recovery there means none, not before the last block."""
    return [blocks] if isinstance(blocks, int) else list(blocks or [])


def our_name(name: str, settings: dict[str, Any]) -> str | None:
    """Our name of a weight, None when there is none."""
    path, _, leaf = name.rpartition(".")
    place = _place(path, leaf, settings)
    if place is None:
        return None
    return place if place.endswith((".weight", ".bias", "_bias")) else f"{place}.{LEAVES.get(leaf, leaf)}"


def _place(path: str, leaf: str, settings: dict[str, Any]) -> str | None:
    """Our module (or parameter, where theirs is a module's own) that holds ``path.leaf``."""
    if path in TOP:
        return TOP[path]
    between = re.fullmatch(r"time_(reduction|recover)_layers\.(\d+)(?:\.(dw|pw)_conv)?", path)
    if between:
        kind, number, part = between.groups()
        if kind == "recover":  # theirs are in the order of the reductions, ours in that of the recoveries
            return f"recoveries.{len(settings['recover_at']) - 1 - int(number)}.linear"
        return f"reductions.{number}.{'depthwise' if part == 'dw' else 'pointwise'}"
    block = re.fullmatch(r"conformer_blocks\.(\d+)\.(.+)", path)
    if not block:
        return None
    number, rest = block.groups()
    if settings["norm_at"] == "pre":
        return f"blocks.{number}." + _conformer_place(rest, leaf)
    return f"blocks.{number}." + _squeezeformer_place(rest, leaf)


def _conformer_place(rest: str, leaf: str) -> str:
    if rest == "ln":
        return "final"
    layer, _, inner = rest.partition(".")
    index = int(layer.removeprefix("layer")) - 1
    return f"before.{index}" if inner == "ln" else f"branches.{index}" + _part(inner, leaf)


def _squeezeformer_place(rest: str, leaf: str) -> str:
    layer, _, inner = rest.partition(".")
    first = 0 if layer == "layer1" else 2
    if inner in ("ln_mid", "ln"):
        return f"after.{first + (inner == 'ln')}"
    branch, _, part = inner.partition(".")
    index = first + (branch == "ff")
    return f"branches.{index}" + _part(part, leaf) if part else f"before.{index}"


def _part(inner: str, leaf: str) -> str:
    whole = PARTS.get(f"{inner}.{leaf}")
    if whole:
        return f".{whole}"
    first, _, last = inner.partition(".")
    return "".join(f".{piece}" for piece in (PARTS.get(first, first), last) if piece)


def our_value(ours: str, value: Tensor, settings: dict[str, Any]) -> Tensor:
    """Keras layouts -> torch's: Dense (I, O), Conv2D (kh, kw, I, O), depthwise (kh, kw, C, 1), heads apart."""
    if ours.endswith("out.weight") and value.dim() == 3:  # (H, K, D)
        return value.flatten(0, 1).mT
    if ours.endswith("position.weight") and value.dim() == 3:  # (H, D, K)
        return value.transpose(1, 2).flatten(0, 1)
    if value.dim() == 4:
        depthwise = ours.endswith("depthwise.weight") or (ours == "stem.convs.0.weight" and value.shape[3] == 1)
        value = value.permute(2, 3, 0, 1) if depthwise else value.permute(3, 2, 0, 1)
        return value.flatten(2) if ours.endswith("depthwise.weight") else value
    return value.mT if value.dim() == 2 and ours.endswith("weight") else value
