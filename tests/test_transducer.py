"""The transducer: its loss against every alignment, its joint in parts, its searches against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from seqformer.heads.transducer import NUMBERS_AT_ONCE, Transducer
from seqformer.model import create_model
from seqformer.nn.mask import mask_of
from seqformer.nn.transducer_loss import NEVER, Lattice, lattice_entries, skewed, transducer_loss, unskewed

torch.set_num_threads(1)

DIM, VOCAB, LENGTHS = 6, 4, (5, 1, 0, 3)
TEXTS = [[1, 2, 2], [3, 3, 1], [1], []]  # the third item has no frames, the second more units than frames


def head_of(seed: int = 0, **keywords) -> Transducer:
    torch.manual_seed(seed)
    head = Transducer(DIM, VOCAB, **dict(predictor_dim=4, joint=5, max_symbols=2) | keywords).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        head.predictor.embedding.weight[0] = 0
    return head


def batch(fill: float = 0.0, frames: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    mask = mask_of(torch.tensor(LENGTHS), frames)
    x = torch.zeros(len(LENGTHS), frames, DIM)
    x[:, : max(LENGTHS)] = torch.randn(len(LENGTHS), max(LENGTHS), DIM, generator=torch.Generator().manual_seed(3))
    return x.masked_fill(~mask[..., None], fill), mask


def targets_of(texts: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*text, *[-1] * (width - len(text))] for text in texts], dtype=torch.int64)


def log_p_of(head: Transducer, x: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Log-probabilities (frames, units + 1, V) of one item, the whole text read at once."""
    after, _ = head.after(torch.tensor([[0, *text]]))
    return head.logits(head(x[None], torch.ones(1, len(x)).bool())[0, :, None], after[0]).log_softmax(dim=-1)


def nll_of(head: Transducer, x: torch.Tensor, text: list[int], every=None) -> torch.Tensor:
    log_p = log_p_of(head, x, text)
    label = log_p.gather(-1, torch.tensor([*text, 0])[None, :, None].expand(len(x), -1, 1))[..., 0]
    return brute_force(log_p[None, ..., 0], label[None], every or alignments)[0]


def alignments(frames: int, units: int) -> torch.Tensor:
    """Every alignment as what it takes of all blanks, then all labels, each flat: (number, frames + units)."""
    found, places = [], frames * (units + 1)
    for said in itertools.combinations(range(frames + units - 1), units):  # a blank is last
        t = u = 0
        path = []
        for step in range(frames + units):
            path.append(t * (units + 1) + u + places * (step in said))
            t, u = (t, u + 1) if step in said else (t + 1, u)
        found.append(path)
    return torch.tensor(found)


def monotonic_alignments(frames: int, units: int) -> torch.Tensor:
    """Those in which a frame gives a blank or one unit: (number, frames)."""
    found, places = [], frames * (units + 1)
    for said in itertools.combinations(range(frames), units):
        before = [sum(t < frame for t in said) for frame in range(frames)]
        found.append([t * (units + 1) + u + places * (t in said) for t, u in enumerate(before)])
    return torch.tensor(found).reshape(len(found), frames)


def brute_force(blank: torch.Tensor, label: torch.Tensor, every=alignments) -> torch.Tensor:
    """Log-probabilities (B, T, U + 1) -> -log of the sum over every alignment (B,)."""
    paths = every(blank.shape[1], blank.shape[2] - 1)
    entries = torch.cat([blank.flatten(1), label.flatten(1)], dim=1)
    return -entries[:, paths].sum(dim=-1).logsumexp(dim=-1)


def worst_of(cases: int, most_frames: int, most_units: int, monotonic: bool) -> tuple[float, float]:
    """Largest error of the loss and of its gradients, in one batch of all sizes padded with NaN, to float64."""
    generator, worst_loss, worst_gradient = torch.Generator().manual_seed(0), 0.0, 0.0
    shapes = list(itertools.product(range(1, most_frames + 1), range(most_units + 1)))
    each = -(-cases // len(shapes))
    shape = (each * len(shapes), most_frames, most_units + 1)
    entries = torch.randn(2, *shape, generator=generator).mul(3).sigmoid().log()
    frames, units = torch.tensor(shapes).repeat_interleave(each, dim=0).unbind(dim=1)
    real = mask_of(frames, shape[1])[..., None] & mask_of(units + 1, shape[2])[:, None]
    padded = entries.masked_fill(~real, math.nan).requires_grad_()
    loss = transducer_loss(*padded, frames, units, monotonic)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and not padded.grad[:, ~real].any()
    for number, (t, u) in enumerate(shapes):
        rows = slice(number * each, (number + 1) * each)
        if monotonic and u > t:
            assert not loss[rows].any() and not padded.grad[:, rows].any()
            continue
        exact = entries[:, rows, :t, : u + 1].double().requires_grad_()
        truth = brute_force(*exact, monotonic_alignments if monotonic else alignments)
        truth.sum().backward()
        worst_loss = max(worst_loss, float((loss[rows] - truth).detach().abs().max()))
        worst_gradient = max(worst_gradient, float((padded.grad[:, rows, :t, : u + 1] - exact.grad).abs().max()))
    return worst_loss, worst_gradient


@pytest.mark.parametrize("monotonic", [False, True])
def test_the_loss_sums_over_every_alignment(monotonic):
    errors = worst_of(5000, 6, 5, monotonic)
    print("loss {:.1e}, gradient {:.1e}".format(*errors))
    assert max(errors) <= 1e-5


def test_a_long_lattice_is_as_exact_as_float64():
    torch.manual_seed(0)
    T, U = 150, 40
    entries = (torch.randn(2, 1, T, U + 1) - 4).requires_grad_()
    loss = transducer_loss(*entries, torch.tensor([T]), torch.tensor([U]))
    loss.sum().backward()
    blank, label = entries.detach()[:, 0].double().numpy()
    alpha = {(0, 0): 0.0}  # the recursion of the paper, equation 16
    for t, u in list(itertools.product(range(T), range(U + 1)))[1:]:
        stayed = alpha[t - 1, u] + blank[t - 1, u] if t else -math.inf
        alpha[t, u] = np.logaddexp(stayed, alpha[t, u - 1] + label[t, u - 1] if u else -math.inf)
    assert float(loss.detach()) == pytest.approx(-alpha[T - 1, U] - blank[T - 1, U], rel=1e-6)
    exact = entries.detach().double()
    exact[1, :, :, U] = NEVER
    exact.requires_grad_()
    Lattice.apply(*exact, torch.tensor([T]), torch.tensor([U]), False).sum().backward()
    gap = float((entries.grad - exact.grad).abs().max())
    print(f"gradient {gap:.1e}")
    assert gap <= 1e-5


def test_skewed_rows_are_the_anti_diagonals():
    x = torch.randn(2, 3, 5)
    found = skewed(x)
    for n, u in itertools.product(range(7), range(5)):
        inside = 0 <= n - u < 3
        assert torch.equal(found[n, :, u], x[:, n - u, u]) if inside else (found[n, :, u] < -1e29).all()
    assert torch.equal(unskewed(found, 3), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_entries_give_numbers(dtype):
    """One frame, no unit, a text that is nearly impossible and one that is certain."""
    entries = torch.full((2, 4, 3, 3), -1e4, dtype=dtype)
    entries[:, 2] = 0
    frames, units = torch.tensor([1, 3, 3, 1]), torch.tensor([2, 0, 2, 0])
    entries.requires_grad_()
    loss = transducer_loss(*entries, frames, units)
    loss.sum().backward()
    assert entries.grad.isfinite().all() and loss.dtype == torch.float32
    expected = torch.tensor([3e4, 3e4, -math.log(6), 1e4])  # six alignments of probability 1
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_the_joint_in_parts_is_the_whole_joint(chunk):
    torch.manual_seed(0)
    head, following = head_of(), torch.randint(VOCAB, (2, 4))
    halves = [torch.randn(2, 7, 5).requires_grad_(), torch.randn(2, 4, 5).requires_grad_()]
    seen = []

    def joint(encoder: torch.Tensor, predictor: torch.Tensor) -> torch.Tensor:
        seen.append(encoder.shape[1])
        return head.logits(encoder[:, :, None], predictor[:, None])

    def gradients(parts) -> list[torch.Tensor]:
        total = sum((part * torch.arange(float(part.numel())).reshape(part.shape)).sum() for part in parts)
        return [*parts, *torch.autograd.grad(total, [*halves, *head.linear.parameters()])]

    found = gradients(lattice_entries(joint, *halves, following, chunk))
    log_p = joint(*halves).log_softmax(dim=-1)
    index = following[:, None, :, None].expand(-1, 7, -1, 1)
    expected = gradients([log_p[..., 0], log_p.gather(-1, index)[..., 0]])
    assert max(seen[:-1]) == min(chunk, 7) and len(seen[:-1]) == 2 * -(-7 // chunk)  # made, and made again
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keywords", [dict(layers=2), dict(predictor="stateless", context=3)])
def test_the_loss_is_the_weighted_mean_over_items_with_frames(keywords):
    head, (x, mask) = head_of(**keywords), batch()
    weight, kept = torch.tensor([1.0, 3.0, 5.0, 0.5]), (0, 1, 3)
    truth = sum(weight[item] * nll_of(head, x[item, : LENGTHS[item]], TEXTS[item]) for item in kept) / 4.5
    expected = torch.autograd.grad(truth, list(head.parameters()))
    for width, fill in ((3, 0.0), (7, math.nan)):
        x = batch(fill)[0].requires_grad_()
        loss = head.loss(x, mask, targets_of(TEXTS, width), weight)
        torch.testing.assert_close(loss, truth)
        *found, of_x = torch.autograd.grad(loss, [*head.parameters(), x])
        torch.testing.assert_close(found, list(expected))
        assert of_x.isfinite().all() and not of_x[~mask].any() and of_x[0].any()
    assert not expected[0][0].any()  # the embedding of the start stays zeros


def test_the_loss_of_nothing_is_zero_with_a_gradient_of_zero():
    head, (x, mask) = head_of(), batch()
    for rows, weight in ((slice(2, 3), None), (slice(0, 2), torch.zeros(2))):
        head.zero_grad()
        loss = head.loss(x[rows], mask[rows], targets_of(TEXTS[rows], 3), weight)
        loss.backward()
        assert loss == 0 and not any(parameter.grad.any() for parameter in head.parameters())
    empty = head.loss(x[:1], mask[:1], targets_of([[]], 0))
    torch.testing.assert_close(empty, -log_p_of(head, x[0, : LENGTHS[0]], [])[:, 0, 0].sum())


def test_a_monotonic_text_longer_than_its_frames_is_counted_and_left_out():
    head, (x, mask) = head_of(monotonic=True), batch()
    targets = targets_of([[1, 2, 2], [3, 3], [], [2, 2, 2]], 3)
    assert head.infeasible(mask, targets).tolist() == [False, True, False, False]
    expected = -sum(monotonic_log_p(head, x[item, : LENGTHS[item]], targets[item].tolist()) for item in (0, 3)) / 2
    assert float(head.loss(x, mask, targets).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_float32_under_autocast_and_bounded_in_memory(monkeypatch):
    head, (x, mask) = head_of(), batch()
    expected = head.loss(x, mask, targets_of(TEXTS, 3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(x, mask, targets_of(TEXTS, 3))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    largest = []
    head.linear.register_forward_hook(lambda _, inputs, output: largest.append(inputs[0].numel() + output.numel()))
    for limit in (NUMBERS_AT_ONCE, 300, 1):
        monkeypatch.setattr("seqformer.heads.transducer.NUMBERS_AT_ONCE", limit)
        torch.testing.assert_close(head.loss(x, mask, targets_of(TEXTS, 3)), expected)
    assert sorted(set(largest)) == [144, 288, 864]  # one frame of 4 items, 4 places, 5 + 4 numbers each is 144


def greedy_of(head: Transducer, x: torch.Tensor) -> list[int]:
    """One item, frame by frame, the whole text read anew after each unit."""
    text, after = [], head.after(torch.tensor([[0]]))[0][0, -1]
    for frame in head(x[None], torch.ones(1, len(x)).bool())[0]:
        for _ in range(head.max_symbols):
            best = int(head.logits(frame, after).argmax())
            if best == 0:
                break
            text.append(best)
            after = head.after(torch.tensor([[0, *text]]))[0][0, -1]
    return text


@torch.no_grad()
@pytest.mark.parametrize("keywords", [dict(layers=2), dict(predictor="stateless", context=3), dict(monotonic=True)])
def test_predictions_equal_those_of_items_alone_frame_by_frame(keywords):
    sizes = set()
    for seed in range(6):
        head, (x, mask) = head_of(seed, **keywords), batch(math.nan)
        long = torch.randn(2, 20, DIM)  # longer than a window
        for frames, real in ((x, mask), (long, torch.ones(2, 20).bool())):
            found = head.predict(frames, real)
            assert found == [greedy_of(head, one[keep]) for one, keep in zip(frames, real, strict=True)]
            sizes |= {len(text) for text in found}
        assert head.predict(x[:, :0], mask[:, :0]) == [[]] * 4
    assert len(sizes) > 6 and max(sizes) > 12


def bounded_log_p(head: Transducer, x: torch.Tensor, text: list[int]) -> float:
    """log of the summed probability of the alignments in which no frame gives more than ``max_symbols`` units."""
    log_p, places, total = log_p_of(head, x, text), len(text) + 1, -math.inf
    for path in alignments(len(x), len(text)).tolist():
        said = [entry % (len(x) * places) // places for entry in path if entry >= len(x) * places]  # frames of units
        if all(said.count(t) <= head.max_symbols for t in said):
            steps = [divmod(entry % (len(x) * places), places) for entry in path]
            units = [text[u] if entry >= len(x) * places else 0 for entry, (_, u) in zip(path, steps, strict=True)]
            total = np.logaddexp(
                total, sum(float(log_p[t, u, unit]) for (t, u), unit in zip(steps, units, strict=True))
            )
    return float(total)


def monotonic_log_p(head: Transducer, x: torch.Tensor, text: list[int]) -> float:
    """log of the summed probability of the alignments in which a frame gives a blank or one unit."""
    return -float(nll_of(head, x, text, monotonic_alignments).detach())


def bigram(units: tuple[int, ...], unit: int) -> float:
    """A language model: 0.3 times a log-probability that depends on the unit before."""
    return -0.3 * ((3 * (units[-1] if units else 0) + 5 * unit) % 7)


@torch.no_grad()
@pytest.mark.parametrize("keywords", [dict(), dict(predictor="stateless"), dict(max_symbols=1), dict(monotonic=True)])
@pytest.mark.parametrize("score", [None, bigram])
def test_a_wide_beam_finds_what_trying_every_text_finds(keywords, score):
    """A total is that of all alignments of a text with at most max_symbols units in a frame, plus its scores."""
    for seed in range(2):
        head = head_of(seed, **keywords)
        x = torch.randn(2, DIM)
        texts = [
            list(text) for size in range(2 * head.max_symbols + 1) for text in itertools.product((1, 2, 3), repeat=size)
        ]
        log_p = monotonic_log_p if head.monotonic else bounded_log_p
        expected = {tuple(text): log_p(head, x, text) for text in texts}
        if score:
            for text in expected:
                expected[text] += sum(score(text[:place], unit) for place, unit in enumerate(text))
        (found,) = head.search(x[None], torch.ones(1, 2).bool(), beam=1000, score=score)
        assert len(found) == len(texts) and found == sorted(found, key=lambda pair: -pair[1])
        assert {tuple(text): total for text, total in found} == pytest.approx(expected, rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_where_no_bound_is_met_a_total_is_the_loss():
    head, (x, mask) = head_of(), batch(math.nan)
    for item, found in enumerate(head.search(x[:, :2], mask[:, :2], beam=400)):
        short = mask[item, :2]
        short_texts = [pair for pair in found if len(pair[0]) <= 2]
        assert len(short_texts) == (13 if short.any() else 1)
        for text, total in short_texts:
            truth = float(nll_of(head, x[item, :2][short], text)) if short.any() else 0.0
            assert total == pytest.approx(-truth, rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_a_narrow_beam_keeps_to_its_size_and_a_wider_one_finds_no_worse():
    totals = torch.zeros(3)
    for seed in range(6):
        head, x = head_of(seed), torch.randn(1, 6, DIM)
        for place, beam in enumerate((1, 4, 64)):
            (found,) = head.search(x, torch.ones(1, 6).bool(), beam)
            assert len(found) <= beam and len({tuple(text) for text, _ in found}) == len(found)
            totals[place] += found[0][1]
    assert totals[0] <= totals[1] <= totals[2] and totals[0] < totals[2]


def test_it_learns_texts_beside_a_ctc_head():
    torch.manual_seed(0)
    main = {"name": "transducer", "vocab": VOCAB, "predictor_dim": 16, "joint": 16}
    heads = {"main": main, "aux": {"name": "ctc", "vocab": VOCAB, "weight": 0.3}}
    body = dict(name="conformer", dim=16, depth=1, heads=2, stem="linear", dropout=0.0)
    model = create_model({"name": "dense", "channels": DIM}, body, heads)
    x, mask = batch(math.nan)
    targets = {"text": targets_of(TEXTS, 3)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        found = model({"x": x}, mask, targets, torch.ones(4))
        torch.testing.assert_close(found["loss"], found["main"] + 0.3 * found["aux"])
        found["loss"].backward()
        optimizer.step()
    assert found["infeasible"] == 2  # of CTC alone
    y, y_mask = model.eval().backbone(*model.frontend({"x": x}, mask)[:2])
    predicted = model.heads["main"].predict(y, y_mask)
    assert predicted == [TEXTS[0], TEXTS[1], [], TEXTS[3]]
    assert [found[0][0] for found in model.heads["main"].search(y, y_mask, beam=4)] == predicted


@torch.no_grad()
def test_what_frames_become_exports_with_any_length():
    head, (x, mask) = head_of(), batch()
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("time", min=2, max=4096)}
    exported = torch.export.export(head, (x, mask), dynamic_shapes=(axes, axes)).module()
    for items, frames in ((1, 7), (3, 90)):
        x, mask = torch.randn(items, frames, DIM), mask_of(torch.randint(1, frames + 1, (items,)), frames)
        torch.testing.assert_close(exported(x, mask), head(x, mask))


@pytest.mark.parametrize("keywords", [dict(layers=0), dict(context=0), dict(max_symbols=0)])
def test_numbers_below_one_are_refused(keywords):
    (name,) = keywords
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        head_of(**keywords)
