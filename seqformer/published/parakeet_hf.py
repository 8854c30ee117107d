"""Hugging Face's ParakeetEncoder: NeMo's FastConformer under other names."""

import re
from collections.abc import Mapping
from typing import Any

from seqformer.published import nemo
from seqformer.published.options import choose, require

our_value = nemo.our_value
NAMES = {
    "subsampling.layers": "pre_encode.conv",
    "subsampling.linear": "pre_encode.out",
    "q_proj": "linear_q",
    "k_proj": "linear_k",
    "v_proj": "linear_v",
    "o_proj": "linear_out",
    "relative_k_proj": "linear_pos",
    "bias_u": "pos_bias_u",
    "bias_v": "pos_bias_v",
    "conv.norm": "conv.batch_norm",
}


def settings_of(config: dict[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``Encoder``. Raises InputError on an option without a counterpart."""
    dim = require(config, "hidden_size", "parakeet_hf config")
    fixed = {"subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2, "hidden_act": "silu"}
    for key, value in fixed.items():
        choose(config, key, value, {value: value}, "parakeet_hf config")
    attention_bias, heads = config.get("attention_bias", True), config.get("num_attention_heads", 8)
    choose(config, "num_key_value_heads", heads, {heads: heads, None: heads}, "parakeet_hf config")
    return dict(
        in_dim=config.get("num_mel_bins", 80),
        dim=dim,
        depth=require(config, "num_hidden_layers", "parakeet_hf config"),
        heads=heads,
        layout="fACf",
        norm_at="pre",
        kernel=config.get("conv_kernel_size", 9),
        conv_activation="glu",
        ff_factor=config.get("intermediate_size", 4 * dim) / dim,
        stem="depthwise_conv2d",
        stem_stride=config.get("subsampling_factor", 8),
        stem_channels=config.get("subsampling_conv_channels", 256),
        scale_input=bool(config.get("scale_input", True)),
        input_norm=False,
        attention_bias=attention_bias,
        ff_bias=attention_bias,
        conv_bias=config.get("convolution_bias", True),
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.1),
        convention="nemo",
    )


def our_name(name: str, settings: dict[str, Any]) -> str | None:
    """Our name of a weight, None when there is none."""
    pieces = "|".join(re.escape(piece) for piece in NAMES)
    name = re.sub(rf"(?<![\w])({pieces})(?![\w])", lambda found: NAMES[found[0]], name)
    return nemo.our_name(name, settings)
