"""The attention decoder: its loss against single items, its cache against decoding without one, and what it learns."""

import pytest
import torch

from seqformer.heads.decoder import START, Decoder
from seqformer.nn.mask import mask_of

torch.set_num_threads(1)

DIM, VOCAB, LENGTHS = 8, 6, (7, 3, 0, 5)
TEXTS = [[1, 2, 5, 1], [3, 3], [4], []]  # the third item has no frames


def head_of(seed: int = 0, **keywords) -> Decoder:
    torch.manual_seed(seed)
    head = Decoder(DIM, VOCAB, **dict(dropout=0.0, max_units=20, heads=2) | keywords).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def batch(fill: float | None = None, frames: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    mask = mask_of(torch.tensor(LENGTHS), frames)
    x = torch.zeros(len(LENGTHS), frames, DIM)
    x[:, : max(LENGTHS)] = torch.randn(len(LENGTHS), max(LENGTHS), DIM, generator=torch.Generator().manual_seed(3))
    return x.masked_fill(~mask[..., None], 0.0 if fill is None else fill), mask


def padded(texts: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*text, *[-1] * (width - len(text))] for text in texts]).reshape(len(texts), width)


def nll_of(head: Decoder, x: torch.Tensor, text: list[int], smoothing: float = 0.0) -> list[torch.Tensor]:
    """Cross-entropy of each unit and the end of one item, each from all units before it, read anew."""
    mask, losses = torch.ones(1, len(x)).bool(), []
    for count, goal in enumerate([*text, VOCAB]):
        logits, _ = head.logits(torch.tensor([[START, *text[:count]]]), head(x[None], mask), mask)
        log_p = logits[0, -1].log_softmax(dim=-1)
        losses.append(-(1 - smoothing) * log_p[goal - 1] - smoothing * log_p.mean())
    return losses


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_weighted_mean_over_units_and_ends(reverse, smoothing):
    head, (x, mask) = head_of(reverse=reverse, smoothing=smoothing), batch()
    weight, total, count = torch.tensor([1.0, 3.0, 5.0, 0.5]), 0.0, 0.0
    for item in (0, 1, 3):
        text = TEXTS[item][::-1] if reverse else TEXTS[item]
        losses = nll_of(head, x[item, : LENGTHS[item]], text, smoothing)
        total, count = total + weight[item] * sum(losses), count + weight[item] * len(losses)
    for width, fill in ((4, None), (9, float("nan"))):
        found = head.loss(*batch(fill), padded(TEXTS, width), weight)
        torch.testing.assert_close(found, total / count)
    found.backward()
    assert all(parameter.grad.isfinite().all() for name, parameter in head.named_parameters())
    nothing = head.loss(x[2:3], mask[2:3], padded([[1]], 1))
    head.zero_grad()
    nothing.backward()
    assert nothing == 0 and not any(parameter.grad.any() for parameter in head.parameters())


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_the_cache_gives_what_reading_everything_gives(positions):
    head, (x, mask) = head_of(positions=positions, layers=3), batch()
    memory, past, units = head(x, mask), None, torch.full((len(LENGTHS), 1), START)
    for _ in range(12):
        whole, _ = head.logits(units, memory, mask)
        step, past = head.logits(units[:, -1:], memory, mask, past)
        torch.testing.assert_close(step[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)
        units = torch.cat([units, step.argmax(dim=-1) + 1], dim=1).clamp(max=VOCAB - 1)


def greedy(head: Decoder, x: torch.Tensor) -> list[int]:
    """One item, no cache, no batch, no padding."""
    mask, text = torch.ones(1, len(x)).bool(), []
    while len(x) and len(text) < head.max_units:
        logits, _ = head.logits(torch.tensor([[START, *text]]), head(x[None], mask), mask)
        best = int(logits[0, -1].argmax()) + 1
        if best == VOCAB:
            break
        text.append(best)
    return text[::-1] if head.reverse else text


@torch.no_grad()
@pytest.mark.parametrize("reverse", [False, True])
def test_predictions_equal_those_of_items_alone_without_a_cache(reverse):
    seen = set()
    for seed in range(8):
        head, (x, mask) = head_of(seed, reverse=reverse), batch(fill=float("nan"))
        found = head.predict(x, mask)
        assert found == [greedy(head, x[item, :length]) for item, length in enumerate(LENGTHS)]
        assert found[2] == [] and all(START < unit < VOCAB for text in found for unit in text)
        seen |= {len(text) for text in found}
    assert len(seen) > 3 and max(seen) == head.max_units  # texts of many lengths, some without an end


def test_masked_units_are_replaced_in_training_only():
    head, (x, mask) = head_of(token_mask=1.0), batch()
    rows = [[1, 2, 3], [3, 2, 1]]
    read = []
    head.units.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    head.loss(x[:2], mask[:2], padded(rows, 3))
    head.train().loss(x[:2], mask[:2], padded(rows, 3))
    assert read[0].tolist() == [[START, *row] for row in rows]
    assert read[1].tolist() == [[START, VOCAB, VOCAB, VOCAB]] * 2
    head.token_mask = 0.2
    torch.manual_seed(0)
    head.loss(x[:1].expand(400, -1, -1), mask[:1].expand(400, -1), padded([[1, 2, 3]] * 400, 3))
    assert float((read[2][:, 1:] == VOCAB).float().mean()) == pytest.approx(0.2, abs=0.04)


def test_it_learns_a_text_and_its_end():
    head, (x, mask) = head_of(layers=1), batch()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(x, mask, padded(TEXTS, 4)).backward()
        optimizer.step()
    assert head.predict(x, mask) == [TEXTS[0], TEXTS[1], [], TEXTS[3]]


def test_what_it_cannot_take_is_refused():
    x, mask = batch()
    with pytest.raises(ValueError, match="a target of 21 units; max_units is 20"):
        head_of().loss(x, mask, padded([[1] * 21] * 4, 21))
    with pytest.raises(ValueError, match="dim 8 is not a multiple of heads 3"):
        head_of(heads=3)


@torch.no_grad()
def test_what_frames_become_exports_with_any_length():
    head, (x, mask) = head_of(), batch()
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("time", min=2, max=4096)}
    exported = torch.export.export(head, (x, mask), dynamic_shapes=(axes, axes)).module()
    for items, frames in ((1, 7), (3, 90)):
        x, mask = torch.randn(items, frames, DIM), mask_of(torch.randint(1, frames + 1, (items,)), frames)
        torch.testing.assert_close(exported(x, mask), head(x, mask))
