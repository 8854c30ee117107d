"""Attention with each kind of position, and with a limited context, equals its definition pair by pair."""

import math

import pytest
import torch
from test_parts import LENGTHS, MASK, close, frames, perturbed

from seqformer.nn.attention import Attention
from seqformer.nn.positions import alibi_slopes, sinusoid_table, t5_bucket

torch.set_num_threads(1)

POSITIONS = ("xl", "rotary", "alibi", "t5", "shaw", "none")


def pair_scores(module: Attention, x: torch.Tensor) -> torch.Tensor:
    """Scores (H, T, T) of one item for alibi, t5, shaw and none, from the papers' formulas."""
    T, H = len(x), module.heads
    q, k = (part(x).reshape(T, H, -1) for part in (module.query, module.key))
    score = torch.zeros(H, T, T, dtype=x.dtype)
    for head in range(H):
        for i in range(T):
            for j in range(T):
                key, extra = k[j, head], 0.0
                if module.positions == "alibi":
                    extra = -abs(i - j) * module.slopes[head]
                if module.positions == "t5":
                    extra = module.buckets[head, bucket(j - i, 32, module.max_distance)]
                if module.positions == "shaw":
                    limit = module.max_distance
                    key = key + module.shifts[max(-limit, min(limit, j - i)) + limit]
                score[head, i, j] = q[i, head] @ key / math.sqrt(q.shape[-1]) + extra
    return score


def bucket(distance: int, buckets: int, farthest: int) -> int:
    """T5's bucket, in plain arithmetic."""
    half, size = buckets // 2, abs(distance)
    exact = half // 2
    if size >= exact:
        size = min(half - 1, exact + int(math.log(size / exact) / math.log(farthest / exact) * (half - exact)))
    return size + half * (distance > 0)


def test_t5_buckets():
    distance = torch.arange(-300, 301)
    expected = [bucket(d, 32, 128) for d in distance.tolist()]
    found = t5_bucket(distance).tolist()
    # On an edge between buckets the logarithms of float32 and float64 may fall on either side.
    assert sum(a != b for a, b in zip(found, expected, strict=True)) == 0
    assert set(found) == set(range(32)) - {16}  # 16 would be a later key at distance 0
    assert found[:173] == [15] * 173 and found[-173:] == [31] * 173


def test_alibi_slopes():
    """Press et al., section 3: 1/2, 1/4, ... for 8 heads; for 12, those of 8 and every second of 16."""
    close(alibi_slopes(8), torch.tensor([2.0**-h for h in range(1, 9)]))
    close(alibi_slopes(12), torch.cat([alibi_slopes(8), alibi_slopes(16)[:8:2]]))
    close(alibi_slopes(1), torch.tensor([2.0**-8]))


@torch.no_grad()
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("positions", ["alibi", "t5", "shaw", "none"])
def test_attention_pair_by_pair(positions, with_bias):
    module, x = perturbed(Attention(6, heads=2, positions=positions, max_distance=3)), frames(3, 7, 6)
    bias = frames(3, 2, 7, 7, seed=2) if with_bias else torch.zeros(3, 2, 7, 7)
    y = module(x, MASK, bias=bias if with_bias else None)
    for item, length in enumerate(LENGTHS.tolist()):
        score = (pair_scores(module, x[item]) + bias[item])[:, :, :length]
        v = module.value(x[item]).reshape(7, 2, -1).transpose(0, 1)
        expected = module.out((score.softmax(dim=-1) @ v[:, :length]).transpose(0, 1).flatten(1))
        close(y[item, :length], expected[:length], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("context", [(2, 1), (0, -1), (-1, 0), (0, 0), (-1, -1)])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_limited_context_is_a_bias_of_minus_infinity(positions, context):
    (left, right), x = context, frames(3, 7, 6)
    module, free = (perturbed(Attention(6, 2, positions, context=given)) for given in (context, None))
    distance = torch.arange(7) - torch.arange(7)[:, None]
    beyond = ((distance < -left) & (left >= 0)) | ((distance > right) & (right >= 0))
    bias = torch.zeros(3, 2, 7, 7, dtype=x.dtype).masked_fill(beyond, -math.inf)
    table = sinusoid_table(7, 6, x)
    found, expected = module(x, MASK, table), free(x, MASK, table, bias)
    close(found[MASK], expected[MASK], 1e-6)
    assert found.isfinite().all()  # padded queries, which see no key, included


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_are_those_of_the_forward_pass(positions):
    module, x = perturbed(Attention(6, heads=2, positions=positions)), frames(3, 7, 6)
    table, bias = sinusoid_table(7, 6, x), frames(3, 2, 7, 7, seed=2)
    for given in (None, bias):
        weights = module.weights(x, MASK, table, given)
        v = module.value(x).reshape(3, 7, 2, -1).transpose(1, 2)
        close(module.out((weights @ v).transpose(1, 2).flatten(2)), module(x, MASK, table, given), 1e-6)
        close(weights.sum(dim=-1), torch.ones(3, 2, 7, dtype=x.dtype))
        assert not weights.masked_select(~MASK[:, None, None]).any()


@pytest.mark.parametrize("context", [None, (2, 0)])
@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_of_an_empty_item_is_finite(positions, context):
    module = perturbed(Attention(6, heads=2, positions=positions, context=context))
    x = frames(2, 5, 6).requires_grad_()
    y = module(x, torch.arange(5) < torch.tensor([[4], [0]]), sinusoid_table(5, 6, x))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
