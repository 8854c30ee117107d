"""What each frontend gives, against loops and numpy, and that all of them export."""

import numpy as np
import pytest
import torch
from frontend_inputs import FRONTS, make_inputs, pad_inputs

from seqformer.errors import InputError
from seqformer.model import build_part, create_backbone
from seqformer.nn.mask import mask_of

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


# Not logmel: the length of an FFT of overlapping windows is beyond what export can prove.
EXPORTED = [part for part in FRONTS if part["name"] != "logmel"]


@pytest.mark.parametrize("part", EXPORTED, ids=lambda part: "-".join(map(str, part.values())).replace(" ", "")[:60])
def test_a_frontend_exports_with_dynamic_batch_and_time(part):
    frontend, rng = make(part), np.random.default_rng(0)

    def batch(frames: list[int]):
        items = [make_inputs(frontend, length, rng) for length in frames]
        lengths = torch.tensor([len(item["x"]) for item in items])
        return pad_inputs(items, int(lengths.max()), "noise"), mask_of(lengths, int(lengths.max()))

    inputs, mask = batch([21, 9])
    items, time = torch.export.Dim("items", min=1, max=64), torch.export.Dim("time", min=2, max=65_536)
    axes = {name: {0: items, 1: time} | ({2: time} if name == "pair" else {}) for name in inputs}
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
