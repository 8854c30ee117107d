"""P1: padding never changes a result, alone or in a batch, in eval and train mode, for every registered combination."""

import itertools

import numpy as np
import pytest
import torch
from frontend_inputs import CHANNELS, FILLS, FRONTENDS, FRONTS, make_inputs, pad_inputs
from variants import BACKBONES, NARROW, PRESETS, SMALL, TINY, VARIANTS, registered, small_width, title

from seqformer.batch import Batch
from seqformer.frontends.audio import SpecAugment
from seqformer.model import create_model
from seqformer.nn.mask import lengths_of, mask_of, strided

torch.set_num_threads(1)

TOLERANCE = 1e-5
MIXES = [(48,), (1, 40), (23, 22, 21), (64, 3, 17), (31, 32, 33, 1)]  # frames per item
TRAIN_FILLS = ["noise", "nan", "huge", "zeros", "noise"]  # one per mix: a train case costs four eval cases

HEADS = {
    "classify": [
        {"pooling": "mean", "smoothing": 0.1},
        {"pooling": "attention", "focal": 2.0, "hidden": 5, "activation": "swiglu"},
        {"pooling": "gem", "loss": "kl"},
        {"pooling": "max", "loss": "bce"},
    ],
    "codes": [{}],
    "ctc": [{}],
    "decoder": [{"dropout": 0.0, "heads": 1, "layers": 1, "max_units": 3, "reverse": True, "smoothing": 0.1}],
    "framewise": [
        {"loss": "classes", "gru": 1},
        {"loss": "mae", "weights": "trust"},
        {"loss": "mcrmse", "vocab": 2},
        {"loss": "huber", "clip": [-0.5, 0.5], "beyond": True, "confidence": 0.3},
        {"loss": "bce", "focal": 1.0},
    ],
    "next_unit": [{"smoothing": 0.1}],
    "regress": [{"pooling": "first", "loss": "mse", "vocab": 4}],
    "transducer": [{"predictor": "stateless", "predictor_dim": 3, "joint": 4, "max_symbols": 1}],
}
TEXTS = ("ctc", "decoder", "transducer")
# Every frontend with one backbone, every backbone with one frontend: they meet in Features, whose mask is tested here.
DENSE = next(front for front in FRONTS if front.get("normalize") == "item")
# A bias of pairs is over frames: the stem must keep them.
PAIRS = [(front, BACKBONES[0] | ({"stem": "linear"} if front["name"] == "pair" else {})) for front in FRONTS]
PAIRS += [(DENSE, part) for part in BACKBONES[1:] + VARIANTS]


def pair_title(value: dict) -> str:
    return "-".join(map(str, value.values())).replace(" ", "")[:60] if value in FRONTS else title(value)


def make_model(frontend: dict, backbone: dict, seed: int = 0):
    """A model with every head, its biases, running statistics and position biases moved off their trivial values."""
    torch.manual_seed(seed)
    heads = {
        f"{name}{number}": {"name": name, "vocab": 1 if keywords.get("loss") in ("mae", "mse", "huber") else 4}
        | keywords
        for name, cases in HEADS.items()
        for number, keywords in enumerate(cases)
    }
    for key in heads:
        heads[key] |= {"target": key, "weight": 0.5 + len(key) % 3}
    model = create_model(frontend, backbone, heads)
    torch.manual_seed(seed + 1)  # one head more in the table shall not change the backbones
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "bias" in name:
                parameter += 0.2 * torch.randn_like(parameter)
            elif name.startswith("backbone.stem") or name.endswith("conv.depthwise.weight"):
                parameter *= 3  # frames that hardly differ would measure the rounding of BatchNorm, not padding
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def make_target(rng: np.random.Generator, key: str, head, frames: int) -> np.ndarray:
    """A target of one head: class, shares of classes, units, or classes or values of frames."""
    kind, vocab = getattr(head, "kind", "values"), head.linear.out_features
    if key.startswith(TEXTS):
        return rng.integers(1, vocab, rng.integers(min(frames // 2, getattr(head, "max_units", frames)) + 1))
    if kind == "kl":
        return rng.dirichlet(np.ones(vocab))
    if key.startswith("classify"):
        return rng.integers(vocab)
    if key.startswith("regress"):
        return rng.normal(size=vocab)
    if kind == "classes" or key.startswith(("codes", "next_unit")):
        return rng.integers(-1, vocab, frames)
    size = (frames, vocab // head.values.columns)
    values = rng.random(size) if kind == "bce" else rng.normal(size=size)
    return np.where(rng.random(size) < 0.2, np.nan, values)


def make_items(model, mix: tuple[int, ...], seed: int = 1) -> list[dict]:
    """Items of a mix: raw inputs and targets for every head, all a function of the seed; no head's moves another's."""
    rng, items = np.random.default_rng(seed), []
    draws = {key: np.random.default_rng([seed, *key.encode()]) for key in model.heads}
    for frames in mix:
        inputs = make_inputs(model.frontend, frames, rng)
        out = strided(frames, model.backbone.stride)
        targets = {"trust": np.where(rng.random(out) < 0.1, np.nan, rng.uniform(0.5, 2, out))}
        targets |= {key: make_target(draws[key], key, head, out) for key, head in model.heads.items()}
        items.append({"inputs": inputs, "targets": targets, "weight": rng.uniform(0.5, 2.0)})
    return items


def make_batch(model, items: list[dict], extra: int = 0, fill: str = "zeros") -> Batch:
    """Pad items with ``fill`` to the longest plus ``extra`` frames, as collate does with zeros."""
    lengths = torch.tensor([len(item["inputs"]["x"]) for item in items])
    hop = model.frontend.hop if hasattr(model.frontend, "hop") else 1
    size = int(lengths.max()) + extra * hop
    frames = size // hop if getattr(model.frontend, "frames", "ceil") == "floor" else strided(size, hop)
    out, targets = strided(frames, model.backbone.stride), {}
    for key in items[0]["targets"]:
        values = [torch.as_tensor(item["targets"][key]) for item in items]
        if values[0].dim() == 0 or key.startswith(("classify", "regress")):
            targets[key] = torch.stack(values)
            continue
        longest = max(map(len, values)) if key.startswith(TEXTS) else out
        pad = -1 if not values[0].is_floating_point() else float("nan")
        targets[key] = torch.full((len(items), longest, *values[0].shape[1:]), pad, dtype=values[0].dtype)
        for row, value in enumerate(values):
            targets[key][row, : len(value)] = value
    weight = torch.tensor([item["weight"] for item in items], dtype=torch.float32)
    inputs = pad_inputs([item["inputs"] for item in items], size, fill)
    return Batch([str(row) for row in range(len(items))], inputs, mask_of(lengths, size), targets, weight)


def gap(found, truth, scale=None) -> float:
    """Largest absolute difference, relative to the largest value expected."""
    found, truth = torch.as_tensor(found).double(), torch.as_tensor(truth).double()
    assert found.shape == truth.shape and found.isfinite().all()
    if not truth.numel():
        return 0.0
    return float((found - truth).abs().max() / (truth.abs().max() if scale is None else scale).clamp(min=1e-12))


@torch.no_grad()
def answers_of(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict, dict]:
    """Frames, their mask, logits and predictions of each head: ``model(...)`` and ``model.predict`` in one pass."""
    features = model.frontend(batch.inputs, batch.mask)
    y, mask = model.backbone(features.x, features.mask, features.bias)
    logits = {key: head(y, mask) for key, head in model.heads.items()}
    given = {key: [batch.targets[key]] if hasattr(head, "given_targets") else [] for key, head in model.heads.items()}
    return y, mask, logits, {key: head.predict(y, mask, *given[key]) for key, head in model.heads.items()}


def steady(model) -> None:
    """Compute the backbone in float64, so that what is left is what padding does.

    A chain of BatchNorms grows float32's own rounding, without padding: to 1e-4 in the gradients of ContextNet's 107,
    and a bias in front of one has no gradient but rounding.
    """
    model.backbone.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    model.backbone.register_forward_hook(lambda _, inputs, output: (output[0].float(), output[1]))


def eval_gap(model, mix: tuple[int, ...], fills=FILLS, extra: int = 37) -> float:
    """Each item alone against all together, padded beyond the longest: frames, mask, logits, predictions."""
    model.eval()
    items, worst = make_items(model, mix), 0.0
    alone = [answers_of(model, make_batch(model, [item])) for item in items]
    # The scale is that of all items: a single value that happens to be near 0 is no measure.
    scale = {key: max(logits[key].abs().max() for _, _, logits, _ in alone) for key in model.heads}
    for fill in fills:
        y, mask, logits, predictions = answers_of(model, make_batch(model, items, extra, fill))
        assert torch.equal(y, y * mask[..., None])
        for row, (y_alone, mask_alone, logits_alone, predictions_alone) in enumerate(alone):
            length = strided(mix[row], model.backbone.stride)
            assert mask_alone.shape[1] == mask_alone.sum() == mask[row].sum() == length
            assert mask[row, :length].all()
            worst = max(worst, gap(y[row, :length], y_alone[0]))
            for key in model.heads:
                expected = logits_alone[key][0]
                worst = max(worst, gap(logits[key][row][: len(expected)], expected, scale[key]))
                guess, expected = predictions[key][row], predictions_alone[key][0]
                if isinstance(guess, list):
                    assert guess == expected
                else:
                    worst = max(worst, gap(guess, expected, scale[key].clamp(min=1)))
    return worst


def trained(model, batch: Batch) -> tuple[dict, dict, dict]:
    """Losses, gradients and BatchNorm statistics of one training pass; the model's state stays as it was."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    model.train().zero_grad()
    torch.manual_seed(0)  # of the spans that best_rq masks
    losses = model(batch.inputs, batch.mask, batch.targets, batch.weight)
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    running = {name: buffer.clone() for name, buffer in buffers.items()}
    for name, buffer in buffers.items():
        buffer.copy_(before[name])
    return {name: value.detach() for name, value in losses.items()}, gradients, running


def train_gap(model, batch: Batch, other: Batch) -> float:
    """Largest difference of a training pass over two paddings of the same items."""
    losses, gradients, running = trained(model, batch)
    losses_other, gradients_other, running_other = trained(model, other)
    largest = max(gradient.norm() for gradient in gradients.values())
    assert largest > 0
    return max(
        *(gap(losses_other[name], value) for name, value in losses.items()),
        *(gap(gradients_other[name], value, largest) for name, value in gradients.items()),
        *(gap(running_other[name], value) for name, value in running.items()),
    )


@torch.no_grad()
def test_the_model_gives_what_its_parts_give():
    model = make_model(FRONTS[0], BACKBONES[0]).eval()
    batch = make_batch(model, make_items(model, MIXES[4]), 5, "noise")
    _, _, logits, predictions = answers_of(model, batch)
    found, guesses, losses = model(batch.inputs, batch.mask), model.predict(batch), model.loss(batch)
    assert all(torch.equal(found[key], logits[key]) for key in model.heads)
    assert all(np.array_equal(a, b) for key in model.heads for a, b in zip(guesses[key], predictions[key], strict=True))
    evaluated, loss = model.evaluate(batch)
    assert evaluated.keys() == predictions.keys() and torch.equal(loss, losses)


def test_every_registered_part_has_a_case():
    assert sorted(FRONTENDS) == registered("frontend")
    assert sorted(HEADS) == registered("head")
    assert sorted({*SMALL, *PRESETS, "pretrained"}) == registered("backbone")  # the last is any of the others


@pytest.mark.parametrize(("frontend", "backbone"), PAIRS, ids=pair_title)
def test_eval_output_does_not_depend_on_padding(frontend, backbone):
    model = make_model(frontend, backbone)
    worst = max(eval_gap(model, mix) for mix in MIXES)
    print(f"eval_gap {worst:.2e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize(("frontend", "backbone"), PAIRS, ids=pair_title)
def test_training_does_not_depend_on_padding(frontend, backbone):
    model, worst = make_model(frontend, backbone), 0.0
    steady(model)
    for mix, fill in zip(MIXES, TRAIN_FILLS, strict=True):
        items = make_items(model, mix)
        worst = max(worst, train_gap(model, make_batch(model, items), make_batch(model, items, 37, fill)))
    print(f"train_gap {worst:.2e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("name", PRESETS)
def test_presets_at_small_width(name):
    model = make_model(DENSE, {"name": name} | small_width(name))
    steady(model)
    worst = max(eval_gap(model, mix, ["noise"]) for mix in MIXES)
    print(f"eval_gap {worst:.2e}")
    assert worst <= TOLERANCE
    items = make_items(model, MIXES[3])
    worst = train_gap(model, make_batch(model, items), make_batch(model, items, 37, "noise"))
    print(f"train_gap {worst:.2e}")
    assert worst <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES + VARIANTS, ids=title)
def test_a_backbone_does_not_rely_on_its_frontend(backbone):
    """Padding of x of any kind, and where a frontend gives one, of the bias of the attention logits."""
    model = make_model(DENSE, backbone).backbone.eval()
    lengths, extra = [48, 5, 23], 16
    x, mask = torch.randn(3, 48 + extra, CHANNELS), mask_of(torch.tensor(lengths), 48 + extra)
    inner = getattr(model, "stem", model).stride  # attention's frames are those after the stem
    size = strided(48 + extra, inner)
    biases = [None, torch.randn(3, TINY["heads"], size, size)]
    for fill, bias in itertools.product((0.0, 10.0, 1e38, float("nan")), biases):
        y, _ = model(x.masked_fill(~mask[..., None], fill), mask, bias)
        for row, length in enumerate(lengths):
            out, own = strided(length, model.stride), strided(length, inner)
            own = None if bias is None else bias[row, None, :, :own, :own]
            alone, _ = model(x[row, None, :length], mask[row, None, :length], own)
            assert gap(y[row, :out], alone[0]) <= TOLERANCE and not y[row, out:].any()


@pytest.mark.parametrize("backbone", BACKBONES, ids=title)
@pytest.mark.parametrize("frontend", [FRONTS[0], DENSE], ids=pair_title)
def test_an_item_without_frames_gives_zeros_and_adds_nothing(frontend, backbone):
    model = make_model(frontend, backbone)
    items = make_items(model, MIXES[2])
    batch = make_batch(model, items, 3)
    empty = {key: torch.full_like(value[:1], -1 if not value.is_floating_point() else float("nan"))
             for key, value in batch.targets.items()}  # fmt: skip
    joined = Batch(
        [*batch.ids, "empty"],
        {"x": torch.cat([batch.inputs["x"], torch.randn_like(batch.inputs["x"][:1])])},
        torch.cat([batch.mask, torch.zeros_like(batch.mask[:1])]),
        {key: torch.cat([value, empty[key]]) for key, value in batch.targets.items()},
        torch.cat([batch.weight, torch.zeros(1)]),
    )
    y, mask, logits, predictions = answers_of(model.eval(), joined)
    assert not y[-1].any() and not mask[-1].any()
    assert all(value.isfinite().all() for value in logits.values())
    assert [len(predictions[key][-1]) for key in ("ctc0", "framewise0", "framewise1", "transducer0")] == [0] * 4
    assert train_gap(model, batch, joined) <= TOLERANCE
    # Nothing but such items: zeros, a loss of 0, gradients of 0, running statistics as they were.
    keep = slice(len(items), None)
    nothing = Batch(
        ["empty"],
        {"x": joined.inputs["x"][keep]},
        joined.mask[keep],
        {key: value[keep] for key, value in joined.targets.items()},
        torch.ones(1),
    )
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    losses, gradients, running = trained(model, nothing)
    assert losses["loss"] == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(torch.equal(running[name], value) for name, value in before.items())


@pytest.mark.parametrize("backbone", BACKBONES + VARIANTS + NARROW, ids=title)
def test_bfloat16_autocast_is_near_float32(backbone):
    model = make_model(FRONTS[0], backbone).eval()
    batch = make_batch(model, make_items(model, MIXES[3]), 5, "noise")
    y, mask, _, _ = answers_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        y_half, mask_half, _, _ = answers_of(model, batch)
        loss = model.train()(batch.inputs, batch.mask, batch.targets, batch.weight)["loss"]
    assert torch.equal(mask, mask_half) and loss.dtype == torch.float32
    error = float((y_half.float() - y).norm() / y.norm())
    print(f"bf16_gap {error:.2e}")
    assert error <= 2e-2


@pytest.mark.parametrize("backbone", BACKBONES + VARIANTS + NARROW, ids=title)
def test_the_order_of_a_batch_does_not_matter(backbone):
    model = make_model(FRONTS[0], backbone).eval()
    items, order = make_items(model, MIXES[4]), [2, 0, 3, 1]
    batch, other = make_batch(model, items), make_batch(model, [items[row] for row in order])
    y, mask, logits, _ = answers_of(model, batch)
    y_other, mask_other, logits_other, _ = answers_of(model, other)
    assert torch.equal(mask[order], mask_other)
    assert gap(y_other, y[order]) <= 1e-6
    assert max(gap(logits_other[key], value[order]) for key, value in logits.items()) <= 1e-5
    steady(model)
    assert train_gap(model, batch, other) <= TOLERANCE


def test_spec_augment_does_not_depend_on_padding():
    augment = SpecAugment(freq_masks=2, freq_width=5, time_masks=3, time_share=0.3)
    lengths, found = torch.tensor([50, 7, 31]), []
    for size in (50, 90):
        torch.manual_seed(3)
        found.append(augment(torch.ones(3, size, 12), mask_of(lengths, size)))
    assert torch.equal(found[0], found[1][:, :50]) and not found[0].all()
    assert lengths_of((found[0] == 0).any(dim=2)).all()
