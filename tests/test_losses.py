"""Losses, weights, pooling and layers of heads against loops over single values, closed forms and torch's own."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from seqformer.errors import InputError
from seqformer.heads.classify import Classify
from seqformer.heads.framewise import Framewise
from seqformer.heads.regress import Regress
from seqformer.model import create_model
from seqformer.nn.losses import ValueLoss, class_loss, column_rmse
from seqformer.nn.mask import lengths_of, mask_of, zero_padding
from seqformer.nn.pool import Pool
from seqformer.nn.recurrent import GRU, reverse

torch.set_num_threads(1)

LENGTHS, V = (5, 2, 0, 4), 3


def batch(dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(LENGTHS), 5, dim, generator=torch.Generator().manual_seed(seed))
    return x, mask_of(torch.tensor(LENGTHS), 5)


def huber(gap: float, delta: float) -> float:
    return gap**2 / 2 if abs(gap) <= delta else delta * (abs(gap) - delta / 2)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def error_of(loss: ValueLoss, value: float, target: float) -> float:
    """The error of one value, as the docstring of ValueLoss tells it."""
    if loss.clip is not None:
        low, high = loss.clip
        same_side = (value > high and target >= high) or (value < low and target <= low)
        target = min(max(target, low), high)
        if loss.beyond and same_side:
            return 0.0
    if loss.kind == "bce":
        p, t = sigmoid(value), target * (1 - loss.smoothing) + loss.smoothing / 2
        return -t * (1 - p) ** loss.focal * math.log(p) - (1 - t) * p**loss.focal * math.log(1 - p)
    gap = value - target
    return {"mae": abs(gap), "huber": huber(gap, loss.delta)}.get(loss.kind, gap**2)


OPTIONS = [dict(kind=kind) for kind in ("mae", "mse", "huber", "mcrmse", "bce")]
OPTIONS += [dict(kind=kind, clip=(-0.3, 0.5), beyond=True) for kind in ("mae", "huber", "mcrmse")]
OPTIONS += [dict(kind="mse", clip=(-0.3, 0.5)), dict(kind="huber", delta=0.4, confidence=0.7)]
OPTIONS += [dict(kind="mcrmse", confidence=0.2), dict(kind="bce", smoothing=0.2, focal=1.5, confidence=0.1)]


@pytest.mark.parametrize("shape", [None, (4,), (4, 5), (4, 5, V)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_losses_of_values_equal_loops(options, shape):
    rng, loss = np.random.default_rng(0), ValueLoss(**options)
    outputs = torch.tensor(rng.normal(size=(4, 5, V * loss.columns)), dtype=torch.float32, requires_grad=True)
    targets = torch.tensor(rng.uniform(0, 1, (4, 5, V)) if loss.kind == "bce" else rng.normal(size=(4, 5, V)))
    targets[torch.tensor(rng.random((4, 5, V)) < 0.3)] = math.nan
    targets[..., 1] = math.nan  # a column that is nowhere scored
    mask = mask_of(torch.tensor(LENGTHS), 5)
    weight = None if shape is None else torch.tensor(rng.uniform(0.5, 2, shape), dtype=torch.float32)
    full = np.ones((4, 5, V)) if weight is None else weight.reshape(*shape, *[1] * (3 - len(shape))).numpy()
    full = np.broadcast_to(full, (4, 5, V))
    columns, missed = [[] for _ in range(V)], []
    for b, t, v in itertools.product(range(4), range(5), range(V)):
        if t < LENGTHS[b] and not targets[b, t, v].isnan():
            error = error_of(loss, float(outputs[b, t, v].detach()), float(targets[b, t, v]))
            columns[v].append((error, full[b, t, v]))
            if loss.confidence:
                missed.append((huber(float(outputs[b, t, V + v].detach()) - error, loss.delta), full[b, t, v]))
    every = [pair for column in columns for pair in column]
    expected = sum(e * w for e, w in every) / sum(w for _, w in every)
    if loss.kind == "mcrmse":
        roots = [math.sqrt(sum(e * w for e, w in column) / sum(w for _, w in column)) for column in columns if column]
        expected = sum(roots) / len(roots)
    if loss.confidence:
        expected += loss.confidence * sum(e * w for e, w in missed) / sum(w for _, w in missed)
    found = loss(outputs, targets, mask, weight)
    assert found.dtype == torch.float32 and float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    scored = mask[..., None] & targets.isfinite()
    assert outputs.grad.isfinite().all() and not outputs.grad[~scored.repeat(1, 1, loss.columns)].any()
    nothing = loss(outputs, torch.full_like(targets, math.nan), mask, weight)
    (gradient,) = torch.autograd.grad(nothing, outputs)
    assert nothing == 0 and not gradient.any()


def test_confidence_does_not_move_the_values():
    outputs, targets = torch.randn(2, 3, 2 * V), torch.randn(2, 3, V)
    gradients = []
    for confidence in (0.1, 5.0):
        moved = outputs.clone().requires_grad_()
        ValueLoss("mse", confidence=confidence)(moved, targets, torch.ones(2, 3).bool()).backward()
        gradients.append(moved.grad[..., :V])
    torch.testing.assert_close(*gradients)


def test_a_root_of_nothing_missed_has_a_gradient():
    square = torch.zeros(4, 2, requires_grad=True)
    column_rmse(square, torch.ones(4, 2)).backward()
    assert column_rmse(square, torch.ones(4, 2)) == 0 and not square.grad.any()


@pytest.mark.parametrize(("smoothing", "focal"), [(0.0, 0.0), (0.2, 0.0), (0.0, 2.0), (0.2, 1.5)])
@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_of_classes_equal_loops(smoothing, focal, kl, soft):
    rng, mask = np.random.default_rng(1), mask_of(torch.tensor(LENGTHS), 5)
    logits = torch.tensor(rng.normal(size=(4, 5, V)), dtype=torch.float32, requires_grad=True)
    labels = torch.tensor(rng.integers(-1, V, (4, 5)))
    shares = torch.tensor(rng.dirichlet(np.ones(V), (4, 5)))
    shares[0, 1, 2], shares[1, 0] = math.nan, torch.tensor([0.0, 1.0, 0.0])
    weight, log_p, pairs = torch.tensor(rng.uniform(0.5, 2, (4, 5))), logits.detach().double().log_softmax(-1), []
    for b, t in itertools.product(range(4), range(5)):
        goal = shares[b, t].tolist() if soft else [float(labels[b, t] == v) for v in range(V)]
        if t >= LENGTHS[b] or math.isnan(sum(goal)) or not sum(goal):
            continue
        goal = [share * (1 - smoothing) + smoothing / V for share in goal]
        logs = log_p[b, t].tolist()
        error = -sum(g * (1 - math.exp(log)) ** focal * log for g, log in zip(goal, logs, strict=True))
        error += sum(g * math.log(g) for g in goal if g) if kl else 0
        pairs.append((error, float(weight[b, t])))
    found = class_loss(logits, shares if soft else labels, mask, weight, smoothing, focal, kl)
    expected = sum(e * w for e, w in pairs) / sum(w for _, w in pairs)
    assert found.dtype == torch.float32 and float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert logits.grad.isfinite().all() and not logits.grad[~mask].any()
    nothing = shares * math.nan if soft else labels.clamp(max=-1)
    assert class_loss(logits, nothing, mask, weight, smoothing, focal, kl) == 0


def test_classes_one_by_one_may_be_several():
    x, mask = batch()
    head = Classify(4, vocab=V, loss="bce", pooling="max")
    several = torch.tensor([[1, 0, 1], [0, 0, -1], [1, 1, 1], [-1, -1, -1]])  # whole numbers: -1 is not scored
    logits = head(x, mask)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, several.float().clamp(min=0), reduction="none")
    torch.testing.assert_close(head.loss(x, mask, several), expected[several >= 0].mean())
    numbers, one_hot = torch.tensor([2, 0, -1, 1]), [[0.0, 0, 1], [1, 0, 0], [math.nan] * 3, [0, 1, 0]]
    torch.testing.assert_close(head.loss(x, mask, numbers), head.loss(x, mask, torch.tensor(one_hot)))
    torch.testing.assert_close(torch.from_numpy(np.stack(head.predict(x, mask))), logits.sigmoid().detach())


@pytest.mark.parametrize("kind", ["mean", "max", "gem", "attention", "first"])
def test_pooling_equals_a_loop_over_real_frames(kind):
    torch.manual_seed(0)
    pool, (x, mask) = Pool(4, kind), batch()
    x = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
    found = pool(x, mask)
    for item, length in enumerate(LENGTHS):
        real = x[item, :length]
        if not length:
            expected = torch.zeros(4)
        elif kind == "attention":
            expected = (pool.attention(real).softmax(dim=0) * real).sum(dim=0)
        else:
            cube = real.clamp(min=1e-6).pow(3).mean(dim=0).pow(1 / 3)
            expected = {"mean": real.mean(dim=0), "max": real.amax(dim=0), "gem": cube, "first": real[0]}[kind]
        torch.testing.assert_close(found[item], expected)
    found.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pool.parameters())
    assert not x.grad[~mask].any() and x.grad.isfinite().all()


def test_the_generalised_mean_is_between_mean_and_maximum():
    x, mask = batch()
    x, pool = x.abs() + 0.1, Pool(4, "gem")
    with torch.no_grad():
        for p, kind, tolerance in ((1.0, "mean", 1e-5), (500.0, "max", 5e-3)):  # T^(1/500) is 1.003
            pool.p.fill_(p)
            torch.testing.assert_close(pool(x, mask), Pool(4, kind)(x, mask), rtol=tolerance, atol=0)
        pool.p.fill_(20.0)
        torch.testing.assert_close(pool(1e4 * x, mask), 1e4 * pool(x, mask))


def test_dropout_begins_late():
    x, mask = torch.ones(1, 1, 4000), torch.ones(1, 1).bool()
    head = Regress(4000, dropout=0.1, late_dropout=0.8, late_from=15)
    for epoch, share in ((0, 0.1), (14, 0.1), (15, 0.8), (40, 0.8), (3, 0.1)):
        for module in head.modules():
            if hasattr(module, "begin_epoch"):
                module.begin_epoch(epoch)
        torch.manual_seed(0)
        dropped = head.train().dropout(x)
        assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.03)
        assert torch.equal(head.eval().dropout(x), x)
    assert torch.equal(head(x, mask), head.linear(x[:, 0]))
    with pytest.raises(ValueError, match=r"late_dropout is 0.5, late_from None; expected both or none"):
        Classify(4, 3, late_dropout=0.5)


def test_the_gru_equals_torchs_on_packed_items():
    torch.manual_seed(0)
    gru, (x, mask) = GRU(4, layers=2), batch()
    packed = nn.GRU(4, 2, num_layers=2, batch_first=True, bidirectional=True)
    names = [name for name, _ in gru.forwards[0].named_parameters()]
    with torch.no_grad():
        for layer, name in itertools.product(range(2), names):
            for parts, suffix in ((gru.forwards, ""), (gru.backwards, "_reverse")):
                getattr(packed, f"{name[:-1]}{layer}{suffix}").copy_(getattr(parts[layer], name))
    found = gru(x.masked_fill(~mask[..., None], math.nan), mask)
    for item, length in enumerate(LENGTHS):
        assert not found[item, length:].any()
        if length:
            torch.testing.assert_close(found[item, :length], packed(x[None, item, :length])[0][0])
    assert torch.equal(reverse(reverse(x, mask), mask), x)
    assert torch.equal(reverse(x, mask)[1, :2], x[1, :2].flip(0))


HEADS = {
    "gru": lambda: Framewise(4, V, gru=1, hidden=6, activation="swiglu"),
    "confidence": lambda: Framewise(4, V, loss="mae", confidence=1.0, activation="tanh", hidden=3),
    "gem": lambda: Classify(4, V, pooling="gem", hidden=6, activation="relu"),
    "max": lambda: Regress(4, pooling="max"),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's own GRU keeps its weights in a list as well
@pytest.mark.parametrize("name", HEADS)
def test_heads_export(name):
    """With any number of frames, but for a GRU, which torch's export unrolls: with as many as it was shown."""
    torch.manual_seed(0)
    head, (x, mask), fixed = HEADS[name]().eval(), batch(), name == "gru"
    axes = {0: torch.export.Dim("batch", min=1, max=64)}
    if not fixed:
        axes[1] = torch.export.Dim("time", min=2, max=4096)
    exported = torch.export.export(head, (x, mask), dynamic_shapes=(axes, axes)).module()
    for items, frames in ((1, 5 if fixed else 7), (3, 5 if fixed else 90)):
        x, mask = torch.randn(items, frames, 4), mask_of(torch.randint(1, frames + 1, (items,)), frames)
        torch.testing.assert_close(exported(x, mask), head(x, mask))


def test_predictions_are_values_without_their_confidence():
    x, mask = batch()
    head = Framewise(4, V, loss="huber", confidence=0.5)
    assert head(x, mask).shape == (4, 5, 2 * V)
    found = head.predict(x, mask)
    assert [item.shape for item in found] == [(length, V) for length in LENGTHS]
    np.testing.assert_array_equal(found[0], head(x, mask)[0, :, :V].detach())
    head = Framewise(4, V, loss="bce")
    np.testing.assert_allclose(head.predict(x, mask)[3], head(x, mask)[3, :4].sigmoid().detach(), rtol=1e-6)


DENSE, BODY = {"name": "dense", "channels": 3}, dict(name="conformer", dim=8, depth=1, heads=2, dropout=0.0)


def model_of(head: dict):
    torch.manual_seed(0)
    return create_model(DENSE, BODY | {"stem": "linear"}, head).eval()


def test_a_column_of_weights_times_the_weight_of_the_batch():
    part = {"name": "framewise", "vocab": 2, "loss": "mae", "weights": "trust"}
    model, other = model_of(part), model_of({key: value for key, value in part.items() if key != "weights"})
    x, mask = {"x": torch.randn(2, 6, 3)}, mask_of(torch.tensor([6, 3]), 6)
    labels, weight = torch.randn(2, 6, 2), torch.tensor([1.0, 3.0])
    trust = torch.rand(2, 6) + 0.5
    trust[0, 2], trust[1, 3:] = math.nan, math.nan
    found = model(x, mask, {"labels": labels, "trust": trust}, weight)["loss"]
    gaps = (other(x, mask)["framewise"] - labels).abs().sum(dim=-1)
    share = [(b, t, float(weight[b] * trust[b, t])) for b in range(2) for t in range(6) if not trust[b, t].isnan()]
    expected = sum(float(gaps[b, t].detach()) * w for b, t, w in share) / sum(2 * w for _, _, w in share)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    counts = {"labels": labels, "trust": torch.tensor([2, -1])}  # a whole number per item, -1 where there is none
    alone = other({"x": x["x"][:1]}, mask[:1], {"labels": labels[:1]}, weight[:1])["loss"]
    torch.testing.assert_close(model(x, mask, counts, weight)["loss"], alone)
    with pytest.raises(ValueError, match=r"weights of shape \(2, 5\) for a loss of shape \(2, 6, 2\)"):
        model(x, mask, {"labels": labels, "trust": trust[:, :5]}, weight)


def test_a_head_for_training_only_has_a_loss_and_predicts_nothing():
    extra = {"name": "regress", "loss": "bce", "weight": 0.02, "train_only": True}
    model = model_of({"main": {"name": "framewise", "vocab": 2}, "trust": extra})
    x, mask = {"x": torch.randn(2, 6, 3)}, mask_of(torch.tensor([6, 3]), 6)
    targets = {"labels": torch.ones(2, 6).long(), "value": torch.tensor([0.3, 1.0])}
    losses = model(x, mask, targets, torch.ones(2))
    torch.testing.assert_close(losses["loss"], losses["main"] + 0.02 * losses["trust"])
    assert list(model(x, mask)) == ["main"]
    item = type("Item", (), dict(inputs=x, mask=mask, targets=targets, weight=torch.ones(2)))
    found, loss = model.evaluate(item)
    assert list(found) == ["main"] and torch.equal(loss, losses["main"])
    with pytest.raises(InputError, match="head trust: train_only is true of the head that is scored"):
        model_of({"trust": extra})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(loss="mae", clip=(1.0, 0.0)), "clip is"),
        (dict(loss="mae", beyond=True), "beyond needs clip"),
        (dict(loss="mae", focal=1.0), "smoothing and focal are of classes or bce"),
        (dict(loss="classes", confidence=0.1), "clip, beyond and confidence are of a loss of values"),
        (dict(activation="relu"), "hidden null"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Framewise(4, V, **options)


def test_padding_of_a_head_is_not_read():
    x, mask = batch()
    for make in HEADS.values():
        head = make().eval()
        clean = head(zero_padding(x, mask), mask)
        noisy = head(x, mask)
        if clean.dim() == 3:
            clean, noisy = clean[mask], noisy[mask]
        torch.testing.assert_close(clean, noisy)
    assert lengths_of(mask).tolist() == list(LENGTHS)
