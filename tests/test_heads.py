"""Losses and predictions of heads against brute force; what has no target or no alignment adds nothing, never NaN."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from seqformer.decode.greedy import best_units, collapse
from seqformer.errors import InputError
from seqformer.heads.classify import Classify
from seqformer.heads.ctc import CTC
from seqformer.heads.framewise import Framewise
from seqformer.model import create_model
from seqformer.nn.mask import mask_of

torch.set_num_threads(1)

DIM = 5


def inputs(*lengths: int, frames: int | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, T, DIM) with noise as padding, and its mask."""
    frames = max(lengths) if frames is None else frames
    x = torch.randn(len(lengths), frames, DIM, generator=torch.Generator().manual_seed(seed))
    return x, mask_of(torch.tensor(lengths), frames)


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def padded(targets: list[list[int]], width: int | None = None) -> torch.Tensor:
    width = max(map(len, targets)) if width is None else width
    return torch.tensor([[*target, *[-1] * (width - len(target))] for target in targets]).reshape(len(targets), width)


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Merge repeats, then drop blanks: written as in the paper, one symbol at a time."""
    found, last = [], None
    for unit in path:
        if unit != last and unit != 0:
            found.append(unit)
        last = unit
    return found


def brute_force_nll(log_prob: torch.Tensor, target: list[int]) -> float:
    """-log of the summed probability of every path (V ** T of them) that collapses to the target; inf for none."""
    T, V = log_prob.shape
    total = 0.0
    for path in itertools.product(range(V), repeat=T):
        if collapsed(path) == target:
            total += math.exp(sum(number(log_prob[t, unit]) for t, unit in enumerate(path)))
    return -math.log(total) if total else math.inf


CASES = [(4, [1]), (4, [1, 2]), (4, [1, 1]), (3, [1, 1]), (2, [1, 1]), (4, []), (1, [2]), (1, [1, 2]), (5, [2, 1, 2])]
CASES += [(0, []), (0, [1]), (3, [2, 2, 1]), (4, [2, 2, 1]), (4, [1, 2, 1, 2]), (5, [1, 1, 1]), (4, [1, 1, 1])]


@pytest.mark.parametrize(("length", "target"), CASES)
def test_ctc_loss_sums_over_every_alignment(length, target):
    torch.manual_seed(0)
    head, (x, mask) = CTC(DIM, vocab=3), inputs(length, frames=5)
    expected = brute_force_nll(head.linear(x[0, :length]).double().log_softmax(dim=-1), target)
    loss = head.loss(x, mask, padded([target], width=6))
    assert loss.dtype == torch.float32
    assert bool(head.infeasible(mask, padded([target], width=6))[0]) == math.isinf(expected)
    assert number(loss) == pytest.approx(0.0 if math.isinf(expected) else expected, rel=1e-5, abs=1e-6)
    loss.backward()
    assert head.linear.weight.grad.isfinite().all()
    if math.isinf(expected):
        assert not head.linear.weight.grad.any()


def test_ctc_loss_and_gradient_of_5000_cases_agree_with_float64_paths():
    """Random frames, units, scales and texts, those with repeats, of nothing and too long ones among them."""
    draw, worst, seen = torch.Generator().manual_seed(0), [0.0, 0.0], 0
    for frames, vocab in itertools.product(range(1, 6), (2, 3, 4)):
        paths = torch.tensor(list(itertools.product(range(vocab), repeat=frames)))
        texts = torch.tensor([encoded(collapsed(path), vocab) for path in paths.tolist()])
        cases = 334
        lengths = torch.randint(0, frames + 2, (cases,), generator=draw)
        units = torch.randint(1, vocab, (cases, frames + 1), generator=draw)
        targets = units.masked_fill(torch.arange(frames + 1) >= lengths[:, None], -1)
        numbers = torch.tensor([encoded([u for u in row if u > 0], vocab) for row in targets.tolist()])
        logits = 3 * torch.randn(cases, frames, vocab, generator=draw)
        exact, found = logits.double().requires_grad_(), logits.clone().requires_grad_()
        picked = exact.log_softmax(-1)[:, torch.arange(frames), paths].sum(dim=-1)  # (cases, paths)
        nll = -picked.masked_fill(texts != numbers[:, None], -math.inf).logsumexp(dim=1)
        possible = nll.isfinite()
        nll[possible].sum().backward()
        head = CTC(vocab, vocab)
        head.linear = torch.nn.Identity()
        mask = torch.ones(cases, frames, dtype=torch.bool)
        assert torch.equal(head.infeasible(mask, targets), ~possible)
        loss = head.loss(found, mask, targets)
        (loss * possible.sum()).backward()
        assert not found.grad[~possible].any()
        worst[0] = max(worst[0], number((loss - nll[possible].mean()).abs()))
        worst[1] = max(worst[1], number((found.grad - exact.grad.nan_to_num()).abs().max()))
        seen += cases
    assert seen >= 5000 and max(worst) < 1e-5, worst


def encoded(text: list[int], vocab: int) -> int:
    """A text as one number."""
    return sum(unit * vocab**place for place, unit in enumerate(text))


def test_the_best_unit_is_the_first_of_the_largest_as_torch_says_in_any_precision():
    logits = torch.randn(4, 50, 7, generator=torch.Generator().manual_seed(0)).round()  # many are equal
    logits[0, 0, 3], logits[1] = torch.nan, -torch.inf
    plain = torch.tensor([[max(range(7), key=frame.__getitem__) for frame in item] for item in logits[2:].tolist()])
    assert torch.equal(best_units(logits)[2:], plain) and not best_units(logits)[1].any()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # whole numbers, so that rounding changes none
        assert torch.equal(best_units(logits.to(dtype)), logits.argmax(dim=-1))
    assert torch.equal(best_units(logits.clone().requires_grad_().mT), logits.mT.argmax(dim=-1))


def test_infeasible_is_exact():
    head, paths = CTC(DIM, vocab=3), {}
    for length in range(6):
        paths[length] = {tuple(collapsed(path)) for path in itertools.product(range(3), repeat=length)}
    targets = [target for size in range(5) for target in itertools.product((1, 2), repeat=size)]
    for length, reachable in paths.items():
        mask = mask_of(torch.full((len(targets),), length), 5)
        found = head.infeasible(mask, padded([list(target) for target in targets]))
        assert found.tolist() == [target not in reachable for target in targets]


def test_ctc_loss_is_the_weighted_mean_over_feasible_items():
    torch.manual_seed(0)
    head, (x, mask) = CTC(DIM, vocab=4), inputs(6, 2, 4, 1, 5)
    targets = [[1, 2, 3], [1, 1], [], [3, 2], [2, 2]]
    weight = torch.tensor([1.0, 5.0, 0.5, 7.0, 2.0])
    x.requires_grad_()
    loss = head.loss(x, mask, padded(targets), weight)
    logs = [head.linear(x[i, : mask[i].sum()]).double().log_softmax(-1) for i in range(5)]
    nll = {i: brute_force_nll(logs[i], targets[i]) for i in (0, 2, 4)}
    assert head.infeasible(mask, padded(targets)).tolist() == [False, True, False, True, False]
    assert number(loss) == pytest.approx((nll[0] + 0.5 * nll[2] + 2 * nll[4]) / 3.5, rel=1e-5)
    loss.backward()
    assert not x.grad[[1, 3]].any() and not x.grad[~mask].any() and x.grad[[0, 2, 4]].isfinite().all()
    kept = [0, 2, 4]
    assert torch.equal(loss, head.loss(x[kept], mask[kept], padded([targets[i] for i in kept]), weight[kept]))


def test_ctc_of_nothing_to_learn_is_zero_with_a_gradient_of_zero():
    head, (x, mask) = CTC(DIM, vocab=4), inputs(2, 1)
    for targets, weight in [(padded([[1, 1], [1, 2]]), None), (padded([[1], [1]]), torch.zeros(2))]:
        head.zero_grad()
        loss = head.loss(x, mask, targets, weight)
        loss.backward()
        assert loss == 0 and not head.linear.weight.grad.any()
    empty = head.loss(x, mask, padded([[], []]))  # targets (B, 0): every frame is blank
    log_prob = head.linear(x).log_softmax(dim=-1)[..., 0]
    assert number(empty) == pytest.approx(number(-(log_prob[0].sum() + log_prob[1, 0]) / 2), rel=1e-5)


def test_ctc_predicts_what_a_naive_loop_reads():
    torch.manual_seed(0)
    head, (x, mask) = CTC(DIM, vocab=3), inputs(30, 0, 17)
    best = head(x, mask).argmax(dim=-1)
    assert head.predict(x, mask) == [collapsed(best[i, : mask[i].sum()].tolist()) for i in range(3)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_collapse_equals_a_naive_loop(paths, extra, fill):
    size = max(map(len, paths)) + extra
    units = torch.tensor([[*path, *[fill] * (size - len(path))] for path in paths]).reshape(len(paths), size)
    mask = mask_of(torch.tensor([len(path) for path in paths]), size)
    before = mask.clone()
    assert collapse(units, mask) == [collapsed(tuple(path)) for path in paths]
    assert torch.equal(mask, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_classify(pooling, smoothing):
    torch.manual_seed(0)
    head, (x, mask) = Classify(DIM, vocab=4, pooling=pooling, smoothing=smoothing), inputs(6, 1, 3, 4)
    pooled = []
    for item, length in enumerate((6, 1, 3, 4)):
        real = x[item, :length]
        share = (
            head.pool.attention(real).softmax(dim=0) if pooling == "attention" else torch.full((length, 1), 1 / length)
        )
        pooled.append((share * real).sum(dim=0))
    logits = head.linear(torch.stack(pooled))
    torch.testing.assert_close(head(x, mask), logits)
    targets, weight = torch.tensor([3, -1, 0, 2]), torch.tensor([1.0, 9.0, 2.0, 0.5])
    scored = [0, 2, 3]
    expected = F.cross_entropy(logits[scored], targets[scored], reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(head.loss(x, mask, targets), expected.mean())
    torch.testing.assert_close(head.loss(x, mask, targets, weight), (expected * weight[scored]).sum() / 3.5)
    assert head.loss(x, mask, torch.full((4,), -1)) == 0
    probabilities = head.predict(x, mask)
    torch.testing.assert_close(torch.from_numpy(np.stack(probabilities)), logits.softmax(dim=-1).detach())


def test_classify_of_an_empty_item_is_finite():
    for pooling in ("mean", "attention"):
        head, (x, mask) = Classify(DIM, vocab=4, pooling=pooling), inputs(3, 0)
        head.loss(x, mask, torch.tensor([1, 2])).backward()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
        torch.testing.assert_close(head(x, mask)[1], head.linear.bias)


def test_framewise_classes():
    torch.manual_seed(0)
    head, (x, mask) = Framewise(DIM, vocab=3), inputs(4, 2, 3)
    targets = torch.tensor([[0, 2, -1, 1], [1, 1, 0, 2], [-1, -1, -1, 0]])  # the padding is not all -1
    weight, logits = torch.tensor([1.0, 3.0, 2.0]), head(x, mask)
    scored = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1)]
    nll = {key: number(-logits[key].log_softmax(-1)[targets[key]]) for key in scored}
    assert number(head.loss(x, mask, targets)) == pytest.approx(sum(nll.values()) / 5, rel=1e-5)
    expected = sum(value * float(weight[key[0]]) for key, value in nll.items()) / (3 * 1 + 2 * 3)
    assert number(head.loss(x, mask, targets, weight)) == pytest.approx(expected, rel=1e-5)
    assert head.loss(x, mask, torch.full((3, 4), -1)) == 0
    found = head.predict(x, mask)
    assert [item.shape for item in found] == [(4, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(found[1], logits[1, :2].softmax(-1).detach(), rtol=1e-5)
    with pytest.raises(ValueError, match="3 target frames for 4 frames: use a backbone of stride 1"):
        head.loss(x, mask, targets[:, :3])


@pytest.mark.parametrize("vocab", [1, 2])
@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_framewise_values(kind, vocab):
    torch.manual_seed(0)
    head, (x, mask) = Framewise(DIM, vocab=vocab, loss=kind), inputs(4, 2, 3)
    targets = torch.randn(3, 4, vocab)
    targets[0, 1], targets[1, 0, 0], targets[2] = math.nan, math.nan, math.nan
    weight, logits = torch.tensor([1.0, 3.0, 2.0]), head(x, mask)
    errors, shares = [], []
    for item, frame, value in itertools.product(range(3), range(4), range(vocab)):
        if mask[item, frame] and not targets[item, frame, value].isnan():
            gap = number(logits[item, frame, value] - targets[item, frame, value])
            errors.append(abs(gap) if kind == "mae" else gap**2)
            shares.append(float(weight[item]))
    assert number(head.loss(x, mask, targets)) == pytest.approx(np.mean(errors), rel=1e-5)
    weighted = head.loss(x, mask, targets, weight)
    assert number(weighted) == pytest.approx(np.average(errors, weights=shares), rel=1e-5)
    weighted.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    nothing = head.loss(x, mask, torch.full_like(targets, math.nan))
    assert nothing == 0 and torch.equal(nothing, nothing)
    if vocab == 1:
        assert torch.equal(head.loss(x, mask, targets[..., 0]), head.loss(x, mask, targets))
    assert [item.shape for item in head.predict(x, mask)] == [(4, vocab), (2, vocab), (3, vocab)]


@pytest.mark.parametrize(
    ("head", "targets"),
    [
        (Classify(DIM, vocab=4), torch.tensor([3, 1, 0])),
        (CTC(DIM, vocab=4), padded([[1, 2], [3], [2, 2]])),
        (Framewise(DIM, vocab=4), torch.tensor([[0, 2, 1, 1, 3], [1, 1, 0, 2, 0], [2, 2, 0, -1, -1]])),
        (Framewise(DIM, vocab=1, loss="mae"), torch.arange(15.0).reshape(3, 5, 1)),
    ],
    ids=["classify", "ctc", "framewise-classes", "framewise-mae"],
)
def test_an_item_of_weight_zero_is_an_absent_item(head, targets):
    x, mask = inputs(5, 4, 3)
    weight, kept = torch.tensor([2.0, 0.0, 0.5]), [0, 2]
    losses = [head.loss(x, mask, targets, weight), head.loss(x[kept], mask[kept], targets[kept], weight[kept])]
    gradients = [torch.autograd.grad(loss, list(head.parameters())) for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(losses[0], head.loss(x, mask, targets, 3 * weight))
    torch.testing.assert_close(head.loss(x, mask, targets), head.loss(x, mask, targets, torch.ones(3)))


@pytest.mark.parametrize("head", [Classify(DIM, 4), CTC(DIM, 4), Framewise(DIM, 4), Framewise(DIM, 1, loss="mse")])
def test_losses_are_float32_under_autocast(head):
    x, mask = inputs(5, 4)
    targets = {Classify: torch.tensor([3, 1]), CTC: padded([[1, 2], [3]]), Framewise: torch.ones(2, 5).long()}[
        type(head)
    ]
    targets = targets.float()[..., None] if getattr(head, "kind", "") == "mse" else targets
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(x, mask, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(x, mask, targets), rtol=2e-2, atol=2e-2)


def test_several_heads_are_a_weighted_dict():
    torch.manual_seed(0)
    parts = {
        "words": {"name": "ctc", "vocab": 4, "weight": 0.3},
        "speaker": {"name": "classify", "vocab": 3, "target": "speaker"},
        "pitch": {"name": "framewise", "vocab": 1, "loss": "mae", "target": "pitch", "weight": 2},
    }
    keywords = dict(dim=8, depth=1, heads=2, stem="linear", dropout=0.0)
    model = create_model({"name": "dense", "channels": 3}, {"name": "conformer"} | keywords, parts).eval()
    assert model.weights == {"words": 0.3, "speaker": 1.0, "pitch": 2.0}
    x, mask = torch.randn(2, 9, 3), mask_of(torch.tensor([9, 6]), 9)
    targets = {"text": padded([[1, 2], [3]]), "speaker": torch.tensor([2, 0]), "pitch": torch.randn(2, 9, 1)}
    found = model({"x": x}, mask, targets, torch.tensor([1.0, 0.5]))
    assert found.keys() == {"loss", "words", "speaker", "pitch", "infeasible"} and found["infeasible"] == 0
    expected = 0.3 * found["words"] + found["speaker"] + 2 * found["pitch"]
    torch.testing.assert_close(found["loss"], expected)
    logits = model({"x": x}, mask)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        "words": (2, 9, 4), "speaker": (2, 3), "pitch": (2, 9, 1)
    }  # fmt: skip
    single = create_model({"name": "dense", "channels": 3}, {"name": "conformer"} | keywords, parts["words"])
    assert list(single.heads) == ["ctc"] and single.weights == {"ctc": 0.3}


def swb(**aux):
    torch.manual_seed(0)
    body = dict(name="conformer_swb", dim=8, depth=3, heads=2, ff_factor=1, dropout=0.0, attention_dropout=0.0)
    main = {"name": "framewise", "vocab": 4, "focal": 2.0}
    return create_model({"name": "dense", "channels": 6}, body, {"states": main, "lower": main | aux})


def test_an_auxiliary_head_reads_the_block_it_names():
    """The Switchboard hybrid: frames of a lower block, by the shared transposed convolution, and a layer of its own."""
    model = swb(at=1, hidden=5, weight=0.3).eval()
    raw, mask = {"x": torch.randn(2, 14, 6)}, mask_of(torch.tensor([14, 5]), 14)
    features = model.frontend(raw, mask)
    y, _, (lower,) = model.backbone.forward_intermediates(features.x, features.mask, [1])
    logits = model(raw, mask)
    assert torch.equal(logits["states"], model.heads["states"](y, mask))
    head = model.heads["lower"]
    assert torch.equal(logits["lower"], head.linear(head.hidden(lower))) and head.hidden.out_features == 5
    labels = torch.randint(-1, 4, (2, 14))
    losses = model(raw, mask, {"labels": labels}, torch.ones(2))
    torch.testing.assert_close(losses["loss"], losses["states"] + 0.3 * losses["lower"])
    # Focal: each frame's cross-entropy times (1 - p)^2.
    scored = mask & (labels >= 0)
    log_p = logits["lower"].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)[scored]
    torch.testing.assert_close(losses["lower"], (-log_p * (1 - log_p.exp()) ** 2).mean())


def test_a_head_may_read_frames_of_another_rate():
    part = {"name": "squeezeformer", "dim": 8, "depth": 3, "heads": 2, "ff_factor": 1, "stem": "linear", "reduce_at": 1}
    heads = {"whole": {"name": "ctc", "vocab": 3}, "middle": {"name": "ctc", "vocab": 3, "at": 1}}
    model = create_model({"name": "dense", "channels": 6}, part, heads).eval()
    raw, mask = {"x": torch.randn(2, 13, 6)}, mask_of(torch.tensor([13, 6]), 13)
    logits = model(raw, mask)
    assert [logits[name].shape[1] for name in heads] == [13, 7]
    losses = model(raw, mask, {"text": torch.tensor([[1, 2, 1, 2], [1, 2, 1, 2]])}, torch.ones(2))
    assert losses["infeasible"] == 1  # the second item has 3 frames at half the rate
    with pytest.raises(InputError, match="head middle: at is 3; the backbone has 3 blocks"):
        create_model({"name": "dense", "channels": 6}, part, heads | {"middle": heads["middle"] | {"at": 3}})
