"""P4: published weights load by name, shape and layout, and give what the publishers' own code gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from seqformer import import_backbone
from seqformer.backbones.encoder import Encoder
from seqformer.errors import InputError
from seqformer.model import create_backbone
from seqformer.nn.mask import lengths_of, mask_of
from seqformer.timm_import import import_timm

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
TOLERANCE = 1e-4
SOURCES = {"squeezeformer_nemo_small": "nemo", "conformer_tf_small": "squeezeformer_tf"}
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no golden outputs beside this checkout")


def load(name: str) -> tuple[dict, dict, dict]:
    """Weights, config and the arrays of a golden file."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    config = json.loads(str(arrays.pop("config_json")))
    return {key[2:]: value for key, value in arrays.items() if key.startswith("w.")}, config, arrays


@golden
@torch.no_grad()
@pytest.mark.parametrize("case", ["even", "pad", "odd"])
@pytest.mark.parametrize("name", SOURCES)
def test_golden_outputs(name, case):
    """Every block and the output, on all frames the publisher's own mask keeps; padding holds noise."""
    weights, config, arrays = load(name)
    model = import_backbone(weights, source=SOURCES[name], config=config).eval()
    found = {key.split(".act.")[1]: torch.from_numpy(arrays[key]) for key in arrays if f"{case}.act." in key}
    expected = [found[key] for key in sorted(key for key in found if key.startswith(("block", "layer")))]
    x, lengths = torch.from_numpy(arrays[f"{case}.x"]), torch.from_numpy(arrays[f"{case}.lengths"]).long()
    y, mask, blocks = model.forward_intermediates(x, mask_of(lengths, x.shape[1]))
    kept = arrays[f"{case}.mask_len" if "tf" in name else f"{case}.out_lengths"]
    assert lengths_of(mask).tolist() == kept.tolist() and len(blocks) == len(expected)
    worst = float((y - torch.from_numpy(arrays[f"{case}.y"]))[mask].abs().max())
    for block, truth in zip(blocks, expected, strict=True):
        assert block.shape == truth.shape
        real = mask if block.shape[1] == mask.shape[1] else mask[:, ::2]
        worst = max(worst, float((block - truth)[real].abs().max()))
    print(f"{name} {case}: {worst:.1e}")
    assert worst <= TOLERANCE


def scramble(model: torch.nn.Module) -> None:
    """Every weight and statistic off its trivial start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.2))
            if parameter.dim() == 1:
                parameter += 0.5
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


PARAKEETS = [
    {},
    dict(attention_bias=False, convolution_bias=False, scale_input=False, subsampling_factor=4, num_mel_bins=128),
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", PARAKEETS)
def test_parakeet_of_transformers(changes):
    import_timm()  # makes torchvision, which transformers asks for, importable beside a CPU build of torch
    transformers = pytest.importorskip("transformers")
    config = transformers.ParakeetEncoderConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        subsampling_conv_channels=32,
        **changes,
    )
    theirs = transformers.ParakeetEncoder(config).eval()
    scramble(theirs)
    ours = import_backbone(theirs.state_dict(), source="parakeet_hf", config=config.to_dict()).eval()
    mask = mask_of(torch.tensor([200, 131]), 200)
    x = torch.randn(2, 200, config.num_mel_bins) * mask[..., None]  # theirs sees padding of the input, ours does not
    expected, (y, y_mask) = theirs(x, attention_mask=mask), ours(x, mask)
    assert torch.equal(y_mask, expected.attention_mask)
    worst = float((y - expected.last_hidden_state)[y_mask].abs().max())
    print(f"parakeet {worst:.1e}")
    assert worst <= TOLERANCE


# The other models of the two repositories: their names and layouts from their code, written from ours and read back.


def nemo_weights(model: Encoder, squeezed: bool) -> dict[str, np.ndarray]:
    """Our weights under NeMo's names: conv stem counted with its ReLUs, pointwise convolutions with a third axis."""
    parts = ["self_attn", "feed_forward1", "conv", "feed_forward2"]
    norms = ["norm_self_att", "norm_feed_forward1", "norm_conv", "norm_feed_forward2"]
    if not squeezed:
        parts, norms = (["feed_forward1", "self_attn"] + row[2:] for row in (parts, norms))
        norms = ["norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2"]
    inner = {
        "conv": {"expand": "pointwise_conv1", "depthwise": "depthwise_conv", "norm": "batch_norm"},
        "feed": {"expand": "linear1", "project": "linear2"},
        "self": dict(query="linear_q", key="linear_k", value="linear_v", out="linear_out", position="linear_pos"),
    }
    inner["conv"]["project"] = "pointwise_conv2"
    inner["self"] |= {"content_bias": "pos_bias_u", "position_bias": "pos_bias_v"}
    found = {}
    for name, value in model.state_dict().items():
        words = name.split(".")
        if words[0] == "stem":
            depthwise = any("pointwise" in key for key in model.state_dict())
            step = 3 if depthwise else 2
            if words[1] == "linear":
                name = f"pre_encode.out.{words[2]}"
                channels = model.stem.first.out_channels
                if words[2] == "weight":
                    value = value.unflatten(1, (-1, channels)).transpose(1, 2).flatten(1)
            else:
                place = 0 if words[1] == "first" else 2 + step * int(words[2]) + (words[1] == "pointwise")
                name = f"pre_encode.conv.{place}.{words[-1]}"
                if words[1] == "pointwise" and value.dim() == 2:
                    value = value[..., None, None]
        elif words[0] == "norm":
            name = f"pre_ln.{words[1]}"
        elif words[0] == "blocks":
            number, kind, rest = words[1], words[2], words[3:]
            if kind == "final":
                name = f"layers.{number}.norm_out.{rest[0]}"
            elif kind == "branches":
                part = parts[int(rest[0])]
                name = ".".join(["layers", number, part, inner[part[:4]][rest[1]], *rest[2:]])
                if part == "conv" and rest[1] in ("expand", "project") and rest[2] == "weight":
                    value = value[..., None]
            elif kind == "before" and squeezed:
                name = f"layers.{number}.{parts[int(rest[0])]}_scale.{rest[1]}"
            else:
                name = f"layers.{number}.{norms[int(rest[0])]}.{rest[1]}"
        found[name] = value.numpy()
    return found


NEMO = dict(feat_in=80, n_layers=2, d_model=32, n_heads=4)
NEMO_CASES = {
    "conformer": ({}, dict(stem="conv2d")),
    "fastconformer": (
        dict(subsampling="dw_striding", subsampling_factor=8, subsampling_conv_channels=16, conv_kernel_size=9),
        dict(stem="depthwise_conv2d", stem_stride=8, stem_channels=16, kernel=9),
    ),
    "without_bias": (
        dict(subsampling="striding", subsampling_factor=8, use_bias=False, xscaling=False, att_context_size=[3, 1]),
        dict(stem="conv2d", stem_stride=8, attention_bias=False, conv_bias=False, ff_bias=False, scale_input=False)
        | dict(context=(3, 1)),
    ),
    "squeezeformer": ({}, {}),  # as its config says nothing that a Conformer's could not: told by its weights
}


@torch.no_grad()
@pytest.mark.parametrize("case", NEMO_CASES)
def test_every_encoder_of_nemo_loads(case):
    changes, keywords = NEMO_CASES[case]
    squeezed = case == "squeezeformer"
    keywords = dict(in_dim=80, dim=32, depth=2, heads=4, convention="nemo") | keywords
    ours = create_backbone("squeezeformer" if squeezed else "conformer", **keywords).eval()
    scramble(ours)
    weights = nemo_weights(ours, squeezed)
    # Of a whole model, in its own section of the config, with what NeMo's checkpoints hold besides.
    weights = {f"encoder.{name}": value for name, value in weights.items()}
    weights |= {"encoder.layers.0.conv.batch_norm.num_batches_tracked": np.array(3), "decoder.x": np.zeros(2)}
    weights["preprocessor.featurizer.fb"] = np.zeros((1, 80, 257))
    target = f"nemo.collections.asr.modules.{'Squeezeformer' if squeezed else 'Conformer'}Encoder"
    config = {"preprocessor": {}, "encoder": NEMO | changes | {"_target_": target}}
    model = import_backbone(weights, source="nemo", config=config).eval()
    state = ours.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    x, mask = torch.randn(2, 75, 80), mask_of(torch.tensor([75, 40]), 75)
    assert torch.equal(model(x, mask)[0], ours(x, mask)[0])


def keras_weights(model: Encoder) -> dict[str, np.ndarray]:
    """Our Squeezeformer under the official repository's names and layouts."""
    found = {}
    layers = ["layer1.mhsa", "layer1.ff", "layer3.conv", "layer3.ff"]
    after = ["layer1.ln_mid", "layer1.ln", "layer3.ln_mid", "layer3.ln"]
    leaf = {"weight": "kernel", "bias": "bias"}
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    inner = {"expand": "ffn1", "project": "ffn2", "query": "mha.query", "key": "mha.key", "value": "mha.value"}
    conv = {"expand": "pw_conv_1", "project": "pw_conv_2", "depthwise": "dw_conv", "norm": "bn"}
    attention = {
        "out.weight": ("mha.projection_kernel", lambda w: w.mT.unflatten(0, (model.blocks[0].branches[0].heads, -1))),
        "out.bias": ("mha.projection_bias", lambda b: b),
        "position.weight": ("mha.pos_kernel", lambda w: w.unflatten(0, (4, -1)).transpose(1, 2)),
        "content_bias": ("mha.pos_bias_u", lambda b: b),
        "position_bias": ("mha.pos_bias_v", lambda b: b),
    }
    top = {"first": "conv1", "convs": "dw_conv", "pointwise": "pw_conv"}
    for name, value in model.state_dict().items():
        words = name.split(".")
        last = words[-1]
        if words[0] == "stem" and words[1] != "linear":
            kernel = "depthwise_kernel" if words[1] == "convs" else "kernel"
            name = f"conv_subsampling.{top[words[1]]}.{kernel if last == 'weight' else last}"
            if last == "weight":
                value = value[..., None, None] if value.dim() == 2 else value
                value = value.permute(2, 3, 0, 1) if words[1] == "convs" else value.permute(2, 3, 1, 0)
        elif words[0] == "stem":
            name, value = f"linear.{leaf[last]}", value.mT if last == "weight" else value
        elif words[0] == "norm":
            name = f"pre_ln.{norm[last]}"
        elif words[0] == "reductions":
            part = "dw_conv" if words[2] == "depthwise" else "pw_conv"
            name = f"time_reduction_layers.0.{part}." + ("depthwise_kernel" if part[0] == "d" else "kernel")
            name = name if last == "weight" else f"time_reduction_layers.0.{part}.bias"
            if last == "weight":
                value = value.permute(2, 1, 0)[..., None] if part[0] == "d" else value.mT[None, None]
        elif words[0] == "recoveries":
            name, value = f"time_recover_layers.0.{leaf[last]}", value.mT if last == "weight" else value
        elif words[2] == "after":
            name = f"conformer_blocks.{words[1]}.{after[int(words[3])]}.{norm[last]}"
        elif words[2] == "before":
            name = f"conformer_blocks.{words[1]}.{layers[int(words[3])]}.{last}"
        else:
            place, rest = f"conformer_blocks.{words[1]}.{layers[int(words[3])]}", ".".join(words[4:])
            if rest in attention:
                tail, change = attention[rest]
                value = change(value)
            elif words[3] == "2":
                tail = f"{conv[words[4]]}." + (norm[last] if words[4] == "norm" else leaf[last])
                if words[4] == "depthwise" and last == "weight":
                    tail, value = "dw_conv.depthwise_kernel", value.permute(2, 1, 0)[..., None]
                elif words[4] != "norm" and last == "weight":
                    value = value.mT[None, None]
            else:
                tail, value = f"{inner[words[4]]}.{leaf[last]}", value.mT if last == "weight" else value
            name = f"{place}.{tail}"
        found[name] = value.contiguous().numpy()
    return found


OFFICIAL = {
    "encoder_subsampling": {"type": "conv2d", "filters": 32, "kernel_size": 3, "strides": 2},
    "encoder_dmodel": 32,
    "encoder_num_blocks": 3,
    "encoder_head_size": 8,
    "encoder_num_heads": 4,
    "encoder_mha_type": "relmha",
    "encoder_kernel_size": 31,
    "encoder_fc_factor": 1.0,
    "encoder_dropout": 0.1,
    "encoder_time_reduce_idx": [1],
    "encoder_time_recover_idx": [2],
    "encoder_conv_use_glu": False,
    "encoder_ds_subsample": True,
    "encoder_no_post_ln": True,
    "encoder_adaptive_scale": True,
    "encoder_fixed_arch": ["M", "s", "C", "s"],
}


@torch.no_grad()
@pytest.mark.parametrize("rows", [["M", "s", "C", "s"], [["M", "s", "C", "s"]] * 3])
def test_the_official_squeezeformer_loads(rows):
    ours = create_backbone(
        "squeezeformer", in_dim=80, dim=32, depth=3, heads=4, reduce_at=1, convention="squeezeformer_tf"
    ).eval()
    scramble(ours)
    weights = keras_weights(ours)
    shapes = {name: value.shape for name, value in weights.items()}
    assert shapes["conformer_blocks.0.layer1.mhsa.mha.pos_kernel"] == (4, 32, 8)
    assert shapes["conformer_blocks.1.layer3.conv.dw_conv.depthwise_kernel"] == (31, 1, 64, 1)
    assert shapes["time_reduction_layers.0.dw_conv.depthwise_kernel"] == (5, 1, 32, 1)
    assert shapes["conv_subsampling.pw_conv.kernel"] == (1, 1, 32, 32)
    config = {"model_config": OFFICIAL | {"encoder_fixed_arch": rows}}
    model = import_backbone(weights, source="squeezeformer_tf", config=config).eval()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())
    x, mask = torch.randn(2, 206, 80), mask_of(torch.tensor([206, 131]), 206)
    y, y_mask = model(x, mask)
    assert torch.equal(y, ours(x, mask)[0]) and lengths_of(y_mask).tolist() == [51, 34]


@pytest.mark.parametrize(("length", "frames", "real"), [(100, 25, 26), (102, 25, 27), (160, 40, 41), (3001, 750, 751)])
def test_lengths_of_the_official_stem(length, frames, real):
    """reference/backbones.md, section 2, item 11: frames out, and what the official mask counts."""
    model = create_backbone("conformer", in_dim=80, dim=4, depth=1, heads=1, convention="squeezeformer_tf").eval()
    _, mask = model(torch.zeros(1, length, 80), torch.ones(1, length, dtype=torch.bool))
    assert mask.shape[1] == frames and mask.all()
    _, mask = model(torch.zeros(1, length + 40, 80), mask_of(torch.tensor([length]), length + 40))
    assert mask.sum() == real


@golden
def test_weights_that_do_not_fit_are_named():
    weights, config, _ = load("squeezeformer_nemo_small")
    missing = {name: value for name, value in weights.items() if "layers.3.feed_forward1." not in name}
    with pytest.raises(InputError, match=r"4 missing: blocks.3.branches.1.expand.weight, .*strict=False") as error:
        import_backbone(missing, source="nemo", config=config)
    assert "\n" not in str(error.value)
    extra = weights | {f"adapter.{number}": np.zeros(2) for number in range(7)}
    with pytest.raises(InputError, match=r"7 left over: adapter.0, .*adapter.4, \.\.\.;"):
        import_backbone(extra, source="nemo", config=config)
    wrong = weights | {"pre_ln.weight": np.ones(5, np.float32)}
    with pytest.raises(InputError, match=r"1 of another shape: norm.weight \(5,\) for \(64,\)"):
        import_backbone(wrong, source="nemo", config=config)
    with pytest.warns(UserWarning, match=r"loaded in part; of another shape: \['norm.weight"):
        model = import_backbone(wrong, source="nemo", config=config, strict=False)
    assert torch.equal(model.norm.weight, torch.ones(64))  # as initialised
    assert torch.equal(model.norm.bias, torch.from_numpy(weights["pre_ln.bias"]))


def test_options_without_a_counterpart_are_refused():
    for source, config, words in (
        ("nemo", NEMO | {"self_attention_model": "abs_pos"}, "self_attention_model is 'abs_pos'"),
        ("nemo", NEMO | {"subsampling": "vggnet"}, "subsampling is 'vggnet', which is not supported; it may be"),
        ("nemo", NEMO | {"causal_downsampling": True}, "causal_downsampling is True"),
        ("nemo", NEMO | {"conv_context_size": [3, 5]}, "conv_context_size is \\[3, 5\\]"),
        ("nemo", NEMO | {"feat_out": 7}, "feat_out is 7"),
        ("nemo", {"n_layers": 2}, "config has no d_model; it has n_layers"),
        ("nemo", NEMO | {"n_layers": 0}, "config says 0 blocks, and the weights hold 1"),
        ("nemo", NEMO | {"n_layers": 10**9}, "config says 1000000000 blocks, and the weights hold 1"),
        ("nemo", NEMO | {"n_layers": 1, "n_heads": 5}, "dim 32 is not a multiple of heads 5"),
        ("nemo", NEMO | {"n_layers": 1, "d_model": 2**20}, "missing: .*stem"),
        ("nemo", NEMO | {"att_context_size": "wide"}, "nemo config: .*unpack"),
        ("nemo", NEMO | {"n_layers": "two"}, "config says two blocks"),
        ("parakeet_hf", {"hidden_size": 8, "num_hidden_layers": 1, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("squeezeformer_tf", OFFICIAL | {"encoder_fixed_arch": ["c", "f", "m", "f"]}, "fixed_arch is"),
        ("squeezeformer_tf", OFFICIAL | {"encoder_mha_type": "mha"}, "mha_type is 'mha'"),
        ("nemos", {}, "unknown source 'nemos'; did you mean 'nemo'"),
    ):
        with pytest.raises(InputError, match=words):
            import_backbone({"layers.0.norm_out.bias": np.zeros(3)}, source=source, config=config)
