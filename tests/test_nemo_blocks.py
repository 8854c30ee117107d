"""With NVIDIA NeMo's weights, our Squeezeformer and every part of it answer as NeMo's do."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqformer.backbones.squeezeformer import Squeezeformer
from seqformer.nn.mask import mask_of, stride_mask
from seqformer.nn.positions import sinusoid_table

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "squeezeformer_nemo_small.npz"
NEMO = {
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.out",
    "self_attn.linear_pos": "attention.position",
    "self_attn.pos_bias_u": "attention.content_bias",
    "self_attn.pos_bias_v": "attention.position_bias",
    "feed_forward1.linear1": "attention_ff.0",
    "feed_forward1.linear2": "attention_ff.3",
    "feed_forward2.linear1": "conv_ff.0",
    "feed_forward2.linear2": "conv_ff.3",
    "conv.pointwise_conv1": "conv.expand",
    "conv.depthwise_conv": "conv.depthwise",
    "conv.batch_norm": "conv.norm",
    "conv.pointwise_conv2": "conv.project",
    "self_attn_scale": "scales.0",
    "feed_forward1_scale": "scales.1",
    "conv_scale": "scales.2",
    "feed_forward2_scale": "scales.3",
    "norm_self_att": "norms.0",
    "norm_feed_forward1": "norms.1",
    "norm_conv": "norms.2",
    "norm_feed_forward2": "norms.3",
    "pre_encode.conv.0": "stem.first",
    "pre_encode.conv.2": "stem.second",
    "pre_encode.conv.3": "stem.pointwise",
    "pre_encode.out": "stem.linear",
    "pre_ln": "norm",
    "time_reduce_layer.dw_conv": "reduction.depthwise",
    "time_reduce_layer.pw_conv": "reduction.pointwise",
    "time_recovery_layer": "recovery.linear",
}


def nemo_model(golden) -> Squeezeformer:
    """Our Squeezeformer with NeMo's weights, renamed; the stem's linear sees [F, C] here and [C, F] there."""
    keywords = dict(dim=64, depth=6, heads=4, reduce_at=2, recover_at=5)
    model, state = Squeezeformer(in_dim=80, **keywords).eval(), {}
    for key in golden.files:
        if key.startswith("w."):
            block, name = re.fullmatch(r"w\.(?:(layers\.\d+)\.)?(.+)", key).groups()
            theirs = max((known for known in NEMO if name == known or name.startswith(f"{known}.")), key=len)
            ours = (block.replace("layers", "blocks") + "." if block else "") + name.replace(theirs, NEMO[theirs], 1)
            value = torch.from_numpy(golden[key])
            if ours == "stem.linear.weight":
                value = value.unflatten(1, (64, 20)).transpose(1, 2).flatten(1)
            state[ours] = value.reshape(model.state_dict()[ours].shape)
    model.load_state_dict(state, strict=True)
    return model


class NemoReduction(nn.Module):
    """NeMo's frame j sees 2j-3..2j+1, ours 2j-2..2j+2: a frame put before the first makes them the same."""

    def __init__(self, reduction: nn.Module):
        super().__init__()
        self.reduction = reduction

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, half = self.reduction(F.pad(x, (0, 0, 1, 0)), F.pad(mask, (1, 0), value=True))[0], stride_mask(mask, 2)
        return y[:, : half.shape[1]], half


@torch.no_grad()
@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden outputs beside this checkout")
@pytest.mark.parametrize("case", ["even", "pad", "odd"])
def test_parts_of_nemo_squeezeformer(case):
    """Every part on NeMo's own input to it, then the whole encoder."""
    golden = np.load(GOLDEN)
    model, worst = nemo_model(golden), {}
    acts = {key.split(".act.")[1]: torch.from_numpy(golden[key]) for key in golden.files if f"{case}.act." in key}
    x, lengths = torch.from_numpy(golden[f"{case}.x"]), torch.from_numpy(golden[f"{case}.lengths"]).long()
    y, mask = model.stem(x, mask_of(lengths, x.shape[1]))
    assert mask.sum(dim=1).tolist() == golden[f"{case}.out_lengths"].tolist()

    def compare(name: str, found: torch.Tensor, real: torch.Tensor) -> None:
        assert found.shape == acts[name].shape
        worst[name] = float((found - acts[name])[real].abs().max() / acts[name][real].std())

    compare("pre_encode", y, mask)
    compare("pre_ln", model.norm(acts["pre_encode"] * 8), mask)
    model.reduction = NemoReduction(model.reduction)
    reduced, half = model.reduction(acts["layer1"], mask)
    compare("time_reduce_layer", reduced, half)
    compare("time_recovery_layer", model.recovery(acts["layer4"], torch.zeros_like(y)), mask)
    recovered = acts["time_recovery_layer"] + acts["layer1"]
    inputs = [acts[name] for name in ("pre_ln", "layer0", "time_reduce_layer", "layer2", "layer3")] + [recovered]
    for index, before in enumerate(inputs):
        real = half if 2 <= index < 5 else mask
        table = sinusoid_table(before.shape[1], 64, before)
        compare(f"layer{index}", model.blocks[index](before, real, table, None), real)
    acts["whole"] = torch.from_numpy(golden[f"{case}.y"])
    compare("whole", model(x, mask_of(lengths, x.shape[1]))[0], mask)
    print({name: f"{value:.1e}" for name, value in worst.items()})
    assert max(worst.values()) <= 1e-4
