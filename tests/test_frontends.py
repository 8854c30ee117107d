"""What each frontend gives, against loops and numpy, and that all of them export."""

import copy
import re

import numpy as np
import pytest
import torch
from frontend_inputs import FRONTS, TIME_AXES, make_inputs, pad_inputs
from torch.nn import functional as F

from seqformer.errors import InputError
from seqformer.model import build_part, create_backbone, create_model
from seqformer.nn.mask import mask_of
from seqformer.nn.standardize import Standardize
from seqformer.timm_import import import_timm

torch.set_num_threads(1)

DENSE = {"name": "dense", "channels": 4}


def make(part: dict, seed: int = 0):
    """A frontend whose biases and scales are not zero."""
    torch.manual_seed(seed)
    frontend = build_part("frontend", part).eval()
    with torch.no_grad():
        for parameter in frontend.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return frontend


def run(frontend, **fields):
    """Features of one item without padding."""
    inputs = {name: torch.as_tensor(np.asarray(value))[None] for name, value in fields.items()}
    frames = inputs["x"].shape[1]
    with torch.no_grad():
        return frontend(inputs, mask_of(torch.tensor([frames]), frames))


# Not of audio: the length of an FFT of overlapping windows is beyond what export can prove.
AUDIO = {"logmel", "gammatone"}
EXPORTED = [part for part in FRONTS if not AUDIO & {part["name"], (part.get("frontend") or part)["name"]}]


@pytest.mark.parametrize("part", EXPORTED, ids=lambda part: "-".join(map(str, part.values())).replace(" ", "")[:60])
def test_a_frontend_exports_with_dynamic_batch_and_time(part):
    frontend, rng = make(part), np.random.default_rng(0)

    def batch(frames: list[int]):
        items = [make_inputs(frontend, length, rng) for length in frames]
        lengths = torch.tensor([len(item["x"]) for item in items])
        return pad_inputs(items, int(lengths.max()), "noise"), mask_of(lengths, int(lengths.max()))

    inputs, mask = batch([21, 9])
    shortest = 2 if getattr(frontend, "hop", 1) == 1 else 2 * frontend.hop + 1
    items, time = torch.export.Dim("items", min=1, max=64), torch.export.Dim("time", min=shortest, max=65_536)
    axes = {name: {0: items} | {axis + 1: time for axis in range(TIME_AXES.get(name, 1))} for name in inputs}
    exported = torch.export.export(frontend, (inputs, mask), dynamic_shapes=(axes, {0: items, 1: time})).module()
    for frames in ([5], [7, 40, 12]):
        inputs, mask = batch(frames)
        for found, expected in zip(exported(inputs, mask), frontend(inputs, mask), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tokens_are_rows_of_tables_summed_or_side_by_side():
    tokens, values = np.array([[1, 2], [0, 0], [3, 1]]), np.array([[0.5], [np.nan], [-2.0]], np.float32)
    for mix, width in (("sum", 4), ("concat", [4, 2, 3])):
        part = {"name": "tokens", "vocab": [4, 3], "width": width, "mix": mix, "values": 1, "start_end": True}
        frontend = make(part)
        first, second = (table.weight.detach().numpy() for table in frontend.embeddings)
        linear = (
            np.nan_to_num(values) @ frontend.linear.weight.detach().numpy().T + frontend.linear.bias.detach().numpy()
        )
        found = [first[tokens[:, 0]], second[tokens[:, 1]], linear]
        expected = sum(found) if mix == "sum" else np.concatenate(found, axis=1)
        start, end = frontend.ends.detach().numpy()
        expected[0] += start
        expected[2] += end
        assert frontend.dim == expected.shape[1]
        np.testing.assert_allclose(run(frontend, x=tokens, values=values).x[0], expected, atol=1e-6)
    single = make({"name": "tokens", "vocab": [4], "width": 2, "field": "base"})
    assert torch.equal(run(single, x=tokens, base=tokens[:, 0]).x[0], single.embeddings[0].weight[tokens[:, 0]])


def test_a_token_out_of_range_is_named():
    frontend = make({"name": "tokens", "vocab": [4, 3], "width": 2})
    for x, words in (
        ([[1, 2], [3, 3]], "'x' has token 3 in track 1; expected 0 to 2"),
        ([[1, 2], [-1, 0]], "'x' has token -1 in track 0; expected 0 to 3"),
        ([[1], [2]], "'x' has 1 tracks of tokens, vocab 2"),
    ):
        with pytest.raises(InputError, match=words):
            run(frontend, x=x)
    with pytest.raises(InputError, match="no input 'base': the tokens frontend reads its numbers there; it has x"):
        run(make({"name": "tokens", "vocab": [4], "width": 2, "field": "base"}), x=[1, 2])
    # Where it cannot be said, it shows: the frame is NaN, and no other.
    inputs, mask = {"x": torch.tensor([[[1, 2], [3, 0]]])}, torch.ones(1, 2, dtype=torch.bool)
    exported = torch.export.export(frontend, (inputs, mask)).module()
    found = exported({"x": torch.tensor([[[1, 2], [3, 3]]])}, mask)[0]
    assert found[0, 1].isnan().all() and torch.equal(found[0, 0], frontend(inputs, mask).x[0, 0])


@pytest.mark.parametrize(("width", "mix"), [([4, 2], "sum"), ([4], "concat"), ([4, 2, 3], "concat")])
def test_widths_of_tokens_that_do_not_fit_are_refused(width, mix):
    with pytest.raises(InputError, match="width"):
        make({"name": "tokens", "vocab": [4, 3], "width": width, "mix": mix})


def convolved(x_CTT: np.ndarray, conv) -> np.ndarray:
    """A convolution by loops, nothing beyond the edge."""
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    reach, frames = weight.shape[2] // 2, x_CTT.shape[1]
    y = np.zeros((len(bias), frames, frames)) + bias[:, None, None]
    for i in range(frames):
        for j in range(frames):
            for u in range(-reach, reach + 1):
                for v in range(-reach, reach + 1):
                    if 0 <= i + u < frames and 0 <= j + v < frames:
                        y[:, i, j] += weight[:, :, reach + u, reach + v] @ x_CTT[:, i + u, j + v]
    return y


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_the_bias_of_pairs_is_what_loops_give():
    rng = np.random.default_rng(0)
    x, pair = rng.normal(size=(6, 4)).astype(np.float32), rng.uniform(size=(6, 6)).astype(np.float32)
    options = {"name": "pair", "frontend": DENSE, "heads": 2, "kernel": 3}
    frontend = make(options | {"channels": [3, 5]})
    first, second = frontend.convs
    expected = convolved(swish(convolved(swish(convolved(pair[None], first)), second)), frontend.out)
    scaled = expected * frontend.scale.detach().numpy()[:, None, None]
    found = run(frontend, x=x, pair=pair)
    np.testing.assert_allclose(found.bias[0], scaled, atol=1e-5)
    assert torch.equal(found.x[0], torch.from_numpy(x))

    frontend = make(options | {"channels": [3, 3], "kind": "residual", "blocks": 2, "scale": None, "log_floor": 1e-3})
    first, second = frontend.convs
    inner = convolved(np.log(pair + 1e-3)[None] - np.log(1e-3), frontend.entry)
    inner = inner + convolved(swish(inner), first)
    inner = inner + convolved(swish(inner), second)
    found = run(frontend, x=x, pair=pair[..., None]).bias[0]
    assert found.shape == (4, 6, 6)
    np.testing.assert_allclose(found, convolved(inner, frontend.out), rtol=1e-4, atol=1e-5)


def test_pairs_start_without_influence_and_learn():
    torch.manual_seed(0)
    front = build_part("frontend", {"name": "pair", "frontend": DENSE, "heads": 2, "channels": [3], "noise": 0.1})
    backbone = create_backbone("squeezeformer", in_dim=4, dim=8, depth=1, heads=2, stem="linear", dropout=0.0)
    inputs, mask = {"x": torch.randn(1, 5, 4), "pair": torch.rand(1, 5, 5)}, torch.ones(1, 5, dtype=torch.bool)
    features = front(inputs, mask)
    assert torch.equal(backbone(*features)[0], backbone(features.x, features.mask)[0])
    backbone(*features)[0].square().sum().backward()
    assert front.scale.grad.any()
    assert not torch.equal(front._read(inputs["pair"][..., None]), front._read(inputs["pair"][..., None]))


def test_pairs_that_do_not_fit_are_refused():
    x, options = np.zeros((6, 4), np.float32), {"name": "pair", "frontend": DENSE, "heads": 2, "channels": [3]}
    for pair, words in (
        (np.zeros((6, 5)), r"'pair' has shape \(6, 5, 1\); expected \(6, 6, 1\) for 6 frames and 1 tracks"),
        (np.zeros((6, 6, 2)), r"'pair' has shape \(6, 6, 2\)"),
    ):
        with pytest.raises(InputError, match=words):
            run(make(options), x=x, pair=pair)
    with pytest.raises(InputError, match="no input 'pair'"):
        run(make(options), x=x)
    for change, words in (
        ({"frontend": {"name": "logmel"}}, "'logmel' cannot be inside"),
        ({"frontend": options}, "'pair' cannot be inside"),
        ({"frontend": {"name": "denes"}}, "did you mean 'dense'"),
        ({"kernel": 4}, "kernel 4 must be odd"),
        ({"kind": "residual", "channels": [3, 4]}, "equal for kind 'residual'"),
    ):
        with pytest.raises(InputError, match=words):
            make(options | change)


def test_a_model_with_pairs_exports_with_dynamic_batch_and_time():
    torch.manual_seed(0)
    front = {"name": "pair", "frontend": DENSE, "heads": 2, "blocks": 2, "channels": [3], "scale": 1.0}
    back = {"name": "squeezeformer", "dim": 8, "depth": 2, "heads": 2, "reduce_at": 0, "stem": "linear"}
    back |= {"layout": "A", "positions": "alibi", "recover_at": 1}
    model = create_model(front, back, {"name": "framewise", "vocab": 2, "loss": "mae"}).eval()

    def batch(items: int, frames: int):
        inputs = {"x": torch.randn(items, frames, 4), "pair": torch.rand(items, frames, frames)}
        return inputs, mask_of(torch.arange(frames, frames - items, -1), frames)

    items, time = torch.export.Dim("items", min=1, max=64), torch.export.Dim("time", min=5, max=1024)
    axes = ({"x": {0: items, 1: time}, "pair": {0: items, 1: time, 2: time}}, {0: items, 1: time})
    exported = torch.export.export(model, batch(2, 11), dynamic_shapes=axes).module()
    for given in (batch(1, 40), batch(3, 17)):
        torch.testing.assert_close(exported(*given), model(*given), rtol=1e-5, atol=1e-5)


def forward_differences(x: np.ndarray, step: int) -> np.ndarray:
    """By a loop; 0 where either value is missing or beyond the end."""
    found = np.zeros_like(x)
    for frame in range(len(x) - step):
        found[frame] = np.nan_to_num(x[frame + step] - x[frame])
    return found


def test_dense_frames_with_what_fit_found():
    rng = np.random.default_rng(0)
    rows = [
        {"x": (rng.normal(size=(frames, 3)) * [1, 0.1, 0] + [5, 1e3, 7]).astype(np.float32),
         "static": rng.normal(3, 2, size=2).astype(np.float32)}
        for frames in (40, 1, 25)
    ]  # fmt: skip
    rows[0]["x"][3:9, 0] = np.nan
    options = {"name": "dense", "channels": 3, "static": 2, "normalize": "fold", "differences": [1, 4]}
    frontend = build_part("frontend", options | {"clip": 1.5}).eval()
    frontend.fit(row for row in rows)
    joined = np.concatenate([np.c_[row["x"], np.tile(row["static"], (len(row["x"]), 1))] for row in rows]).astype(float)
    mean, deviation = np.nanmean(joined, axis=0), np.nanstd(joined, axis=0)
    assert deviation[2] == 0
    deviation[2] = 1
    np.testing.assert_allclose(frontend.standardize.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(frontend.standardize.deviation, deviation, rtol=1e-6)
    x = np.clip((np.c_[rows[0]["x"], np.tile(rows[0]["static"], (40, 1))] - mean) / deviation, -1.5, 1.5)
    expected = np.c_[np.nan_to_num(x), forward_differences(x[:, :3], 1), forward_differences(x[:, :3], 4)]
    assert frontend.dim == 11
    np.testing.assert_allclose(run(frontend, **rows[0]).x[0], expected, atol=2e-3)  # of 1e3 float32 keeps 4 digits
    # What was fitted is part of the state; a frontend without anything to fit has no fit; a wrapper has that inside.
    assert {"standardize.mean", "standardize.deviation"} == frontend.state_dict().keys()
    assert not hasattr(make({"name": "dense", "channels": 3}), "fit")
    wrapped = {"name": "pair", "heads": 1, "channels": [2]}
    assert not hasattr(make(wrapped | {"frontend": DENSE}), "fit")
    pair = make(wrapped | {"frontend": options})
    pair.fit(rows)
    np.testing.assert_array_equal(pair.frontend.standardize.mean, frontend.standardize.mean)


def test_a_small_deviation_beside_a_large_mean():
    arrays = [1e6 + 1e-2 * np.random.default_rng(seed).normal(size=(50, 1)) for seed in range(20)]
    found = Standardize(1)
    found.fit(arrays)
    np.testing.assert_allclose(found.deviation, np.std(np.concatenate(arrays), axis=0), rtol=1e-5)


def test_a_channel_never_seen_stays_as_it_is():
    frontend = make({"name": "dense", "channels": 2, "normalize": "fold"})
    x = np.array([[1, np.nan], [3, np.nan]], np.float32)
    frontend.fit([{"x": x}])
    assert torch.equal(run(frontend, x=[[2.0, 5.0]]).x, torch.tensor([[[0.0, 5.0]]]))


def landmarks(frames: int, points: int, coordinates: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 0.2, (frames, points, coordinates)).astype(np.float32)
    x[1:4, 2:5] = np.nan
    x[-1, 0] = np.nan
    return x


def test_landmarks_of_isolated_signs():
    """118 points, x and y, movements over 1 and 2 frames, centred on a nose: 708 channels, against numpy."""
    x = landmarks(9, 118)
    frontend = make({"name": "landmarks", "points": 118, "reference": 4})
    assert frontend.dim == 708
    nose = np.nanmean(x[:, 4], axis=0)
    scaled = (x - nose) / np.sqrt(np.nanmean((x - nose) ** 2, axis=(0, 1)))
    values = np.concatenate([np.nan_to_num(scaled), *(forward_differences(scaled, step) for step in (1, 2))], axis=2)
    np.testing.assert_allclose(run(frontend, x=x).x[0], values.reshape(9, 708), atol=2e-3)
    x[:, 4] = np.nan  # a nose that was never seen: the mean of all points instead
    found = run(make({"name": "landmarks", "points": 118, "reference": 4, "differences": []}), x=x).x[0]
    scaled = (x - np.nanmean(x, axis=(0, 1))) / np.nanstd(x, axis=(0, 1))
    np.testing.assert_allclose(found, np.nan_to_num(scaled).reshape(9, 236), atol=2e-3)


def test_parts_of_landmarks_have_their_own_scale_and_layer():
    x = landmarks(6, 8, 3)
    options = {"name": "landmarks", "points": 8, "coordinates": 3, "differences": []}
    options |= {"names": [f"{name}_{index}" for name in ("left", "right") for index in range(4)]}
    options |= {"parts": {"left": "left_*", "ends": [0, 7]}}
    scaled = (x - np.nanmean(x, axis=(0, 1))) / np.nanstd(x, axis=(0, 1))
    parts = []
    for which in ([0, 1, 2, 3], [0, 7]):
        part = scaled[:, which]
        mean, spread = np.nanmean(part, axis=1, keepdims=True), np.nanvar(part, axis=1, keepdims=True)
        parts.append(np.nan_to_num((part - mean) / np.sqrt(spread + 1e-5)).reshape(6, -1))
    whole = np.nan_to_num(scaled).reshape(6, -1)
    found = run(make(options), x=x).x[0]
    np.testing.assert_allclose(found, np.concatenate([whole, *parts], axis=1), atol=2e-3)
    frontend = make(options | {"width": 10})
    linear = [(layer.linear.weight.detach().numpy().T, layer.linear.bias.detach().numpy())
              for layer in (frontend.whole, *frontend.branches)]  # fmt: skip
    whole, *parts = [values @ weight + bias for values, (weight, bias) in zip([whole, *parts], linear, strict=True)]
    np.testing.assert_allclose(run(frontend, x=x).x[0], whole + np.concatenate(parts, axis=1), atol=5e-3)


def test_the_convolution_over_points_is_torchs_with_batch_norm():
    """Without padding our masked norms are torch's: the layer is what a public framework gives."""
    frontend = make(
        {"name": "landmarks", "points": 7, "coordinates": 3, "differences": [], "width": 6, "conv": 4}
    ).train()
    x, layer = torch.from_numpy(landmarks(12, 7, 3))[None], frontend.whole
    found = frontend({"x": x}, torch.ones(1, 12, dtype=torch.bool)).x
    centred = x - x.nanmean(dim=(1, 2), keepdim=True)
    scaled = (centred / (centred.square().nanmean(dim=(1, 2), keepdim=True) + 1e-5).sqrt()).nan_to_num(nan=0.0)
    y = layer.conv(scaled.permute(0, 3, 1, 2))
    assert y.shape == (1, 4, 12, 4)
    y = F.silu(F.batch_norm(y, None, None, layer.norm.weight, layer.norm.bias, training=True))
    y = layer.linear(y.permute(0, 2, 3, 1).flatten(2)).transpose(1, 2)
    expected = F.batch_norm(y, None, None, layer.out_norm.weight, layer.out_norm.bias, training=True).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": {"hand": "5:9"}}, "points '5:9': expected one or more of 0 to 6"),
        ({"parts": {"hand": []}}, "points []: expected"),
        ({"parts": {"hand": "hand_*"}}, "no point is named like 'hand_*'"),
        ({"reference": 7}, "points [7]: expected one or more of 0 to 6"),
        ({"reference": 1, "standardize": False}, "reference is what standardize centres on"),
        ({"conv": 4}, "conv needs the width"),
        ({"width": 7, "parts": {"a": [0], "b": [1]}}, "width 7 is not a multiple of 2 parts"),
        ({"differences": [0]}, "differences [0] must be of 1 frame or more"),
        ({"names": ["nose"]}, "1 names for 7 points"),
    ],
)
def test_landmarks_that_do_not_go_together_are_refused(change, words):
    with pytest.raises(InputError, match=re.escape(words)):
        make({"name": "landmarks", "points": 7} | change)


def test_landmarks_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"landmarks have shape \(8, 3\) a frame; expected \(8, 2\)"):
        run(make({"name": "landmarks", "points": 8}), x=landmarks(6, 8, 3))


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_100"])
def test_an_image_network_is_timms_where_nothing_is_padded(model):
    torch.manual_seed(0)
    theirs = import_timm().create_model(model, features_only=True, in_chans=2, out_indices=(2,))
    ours = build_part("frontend", {"name": "spectrogram_cnn", "model": model, "channels": 2, "stage": 2})
    state = {name.replace(".norm.", "."): name for name in ours.network.state_dict()}  # the norm inside ours
    values = {name: value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert state.keys() <= values.keys()
    ours.network.load_state_dict({name: values[own] for own, name in state.items()})
    x, mask = torch.randn(3, 43, 20, 2), torch.ones(3, 43, dtype=torch.bool)
    for training in (False, True, False):  # the last with the running statistics that training left
        found = ours.train(training)({"x": x}, mask)
        expected = theirs.train(training)(x.permute(0, 3, 1, 2))[-1].mean(dim=3).transpose(1, 2)
        assert found.x.shape == (3, 6, ours.dim) and found.mask.shape == (3, 6) and found.mask.all()
        torch.testing.assert_close(found.x, expected, rtol=1e-4, atol=1e-5)


def test_copies_of_an_image_network_keep_their_own_masks():
    """Averaged weights are a copy of the model: run in turn, at other lengths."""
    front = make({"name": "spectrogram_cnn", "model": "mobilenetv3_small_100", "stage": 0})
    other = copy.deepcopy(front)
    assert front.masks is not other.masks
    assert all(module.masks is other.masks for module in other.network.modules() if hasattr(module, "masks"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet18d", "padding changes its output by .* of it, by a layer not known here; known to work: resnet"),
        ("tf_efficientnet_b0", "layer conv_stem, Conv2dSame of kernel 3, padding 0, is not centred on frames"),
        ("convnext_atto", "Conv2d of kernel 4, padding 0, is not centred"),
        ("resnet34", "resnet34 is refused: list index out of range"),
        ("resnet17", "timm has no model 'resnet17'; did you mean 'resnet18'"),
    ],
)
def test_an_image_network_that_cannot_be_masked_is_refused(model, words):
    with pytest.raises(InputError, match=words):
        make({"name": "spectrogram_cnn", "model": model, "stage": 2 if model != "resnet34" else 7})
