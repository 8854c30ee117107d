"""Self-attention with Transformer-XL positions in tiles: no score of a pair is in memory in the forward pass.

For query i and key j, ((q + u)·k + (q + v)·P(i - j)) / sqrt(K). A tile of n queries and n keys needs 2n - 1 positions:
two chunks of n, of which the next tile of keys needs the second again. So each tile costs one product with positions,
as one with keys, and its scores are turned into place by a rotation of each row (``_turn``). Odd head widths are
padded in the tile.

The backward pass stores the gradients of the scores (B, H, T, T), in the dtype of the queries, which are the gradient
of a bias too. Queries, keys and positions then need no score again: along a diagonal of them the position is one, so
a chunk of positions reads them as rows that begin one further right each. Every sum has one program and a fixed
order: the same bits each time. That memory is the price of half the arithmetic: 0.3 GB at 8 heads and 4,300 frames in
bfloat16; forward needs O(T).

Why custom operators and not traced kernels: see ``depthwise.py``.
"""

import math

import torch
import triton
from torch import Tensor
from triton import language as tl

PARTS = 8  # partial sums over items for the gradient of positions
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2E = math.log2(math.e)
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _rows(x, first, end, WIDE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr):
    """BLOCK rows of x at a head, WIDE numbers apart, from ``first``, (BLOCK, BK); zero outside 0 ... end - 1."""
    row, column = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, BK)[None, :]
    return tl.load(x + row * WIDE + column, mask=(row >= 0) & (row < end) & (column < K), other=0.0)


@triton.jit
def _store_rows(x, first, end, value, WIDE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr):
    row, column = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, BK)[None, :]
    mask = (row >= 0) & (row < end) & (column < K)
    tl.store(x + row * WIDE + column, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b):
    # Of float32, three products of the tensor cores, as exact as its own, whose code spills thousands of registers.
    if INTERPRETED:  # the interpreter would multiply the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _turn(before, after, BLOCK: tl.constexpr):
    """Scores of positions -> of pairs: out(m, n) is column n - m + BLOCK - 1 of both chunks, side by side.

    No column of one chunk is needed where the same one of the other is, so they merge, and row m turns by m + 1.
    """
    m, n = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tl.where(m + n >= BLOCK - 1, before, after), (n - m - 1) & (BLOCK - 1), 1)


@triton.jit
def _place(T, lengths, H: tl.constexpr, BLOCK: tl.constexpr):
    """First frame of this program's tile, its item, head, and the item's length."""
    tiles = tl.cdiv(T, BLOCK)
    pair = tl.program_id(0) // tiles
    item, head = (pair // H).to(tl.int64), pair % H
    return (tl.program_id(0) % tiles) * BLOCK, item, head, tl.load(lengths + item).to(tl.int32)


@triton.jit
def _reach(first, length, before, after, BLOCK: tl.constexpr):
    """Frames that a tile meets, from a tile's first to before the last: none for a tile of padding."""
    low = tl.maximum(first - before, 0) // BLOCK * BLOCK
    high = tl.where(first < length, tl.minimum(length, first + BLOCK + after), low)
    return low, high


@triton.jit
def _seen(i, j, length, left, right):
    return (i < length) & (j >= 0) & (j < length) & (j - i >= -left) & (j - i <= right)


@triton.jit
def _logits(products, bias, i, j, seen, factor, stride, BIAS: tl.constexpr):
    """Base-2 logits of a tile, -inf where a query does not look."""
    score = products * factor
    if BIAS:
        score += tl.load(bias + i.to(tl.int64) * stride + j, mask=seen, other=0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(seen, score, float("-inf"))


@triton.jit
def _forward(
    q_content, q_position, keys, values, positions, bias, lengths, out, sums, T, left, right, factor,
    bias_item, bias_head, bias_row,
    WIDE: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile of queries over all keys: out (B, T, H, K), and the base-2 log of each query's sum (B, H, T)."""
    first, item, head, length = _place(T, lengths, H, BLOCK)
    at = item * T * H * K + head * K
    keys += item * T * WIDE + head * K
    values += item * T * WIDE + head * K
    positions += head * K
    bias += item * bias_item + head * bias_head
    low, high = _reach(first, length, left, right, BLOCK)
    q_c = _rows(q_content + at, first, length, H * K, K, BLOCK, BK)
    q_p = _rows(q_position + at, first, length, H * K, K, BLOCK, BK)
    i = first + tl.arange(0, BLOCK)[:, None]
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK, BK], tl.float32)
    before = _dot(q_p, tl.trans(_rows(positions, T - first - BLOCK + low, 2 * T - 1, H * K, K, BLOCK, BK)))
    for key in range(low, high, BLOCK):
        j = key + tl.arange(0, BLOCK)[None, :]
        after = _dot(q_p, tl.trans(_rows(positions, T - first + key, 2 * T - 1, H * K, K, BLOCK, BK)))
        products = _dot(q_c, tl.trans(_rows(keys, key, length, WIDE, K, BLOCK, BK))) + _turn(before, after, BLOCK)
        before = after
        logit = _logits(products, bias, i, j, _seen(i, j, length, left, right), factor, bias_row, BIAS)
        higher = tl.maximum(best, tl.max(logit, 1))
        pivot = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen no key yet
        weight, fade = tl.exp2(logit - pivot[:, None]), tl.exp2(best - pivot)
        total = total * fade + tl.sum(weight, 1)
        value = _rows(values, key, length, WIDE, K, BLOCK, BK)
        mean = mean * fade[:, None] + _dot(weight.to(value.dtype), value)
        best = higher
    none = total == 0
    _store_rows(out + at, first, T, mean / tl.where(none, 1.0, total)[:, None], H * K, K, BLOCK, BK)
    row = first + tl.arange(0, BLOCK)
    log = tl.where(none, 0.0, best) + tl.log2(tl.where(none, 1.0, total))
    tl.store(sums + (item * H + head) * T + row, log, mask=row < T)


@triton.jit
def _backward_keys(
    q_content, q_position, keys, values, positions, bias, lengths, out, sums, d_out, d_keys, d_values, d_scores,
    T, left, right, factor, bias_item, bias_head, bias_row, columns,
    WIDE: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile of keys over all queries: gradients of keys, values and scores (B, H, T, columns)."""
    first, item, head, length = _place(T, lengths, H, BLOCK)
    at = item * T * H * K + head * K
    keys += item * T * WIDE + head * K
    values += item * T * WIDE + head * K
    positions += head * K
    bias += item * bias_item + head * bias_head
    sums += (item * H + head) * T
    d_scores += (item * H + head) * T * columns
    low, high = _reach(first, length, right, left, BLOCK)
    key = _rows(keys, first, length, WIDE, K, BLOCK, BK)
    value = _rows(values, first, length, WIDE, K, BLOCK, BK)
    j = first + tl.arange(0, BLOCK)[None, :]
    d_key, d_value = tl.zeros([BLOCK, BK], tl.float32), tl.zeros([BLOCK, BK], tl.float32)
    for query in range(low, high, BLOCK):
        i = query + tl.arange(0, BLOCK)[:, None]
        q_p = _rows(q_position + at, query, length, H * K, K, BLOCK, BK)
        before = _dot(q_p, tl.trans(_rows(positions, T - query - BLOCK + first, 2 * T - 1, H * K, K, BLOCK, BK)))
        after = _dot(q_p, tl.trans(_rows(positions, T - query + first, 2 * T - 1, H * K, K, BLOCK, BK)))
        q_c = _rows(q_content + at, query, length, H * K, K, BLOCK, BK)
        products = _dot(q_c, tl.trans(key)) + _turn(before, after, BLOCK)
        logit = _logits(products, bias, i, j, _seen(i, j, length, left, right), factor, bias_row, BIAS)
        weight = tl.exp2(logit - tl.load(sums + i, mask=i < length, other=0.0))
        grad = _rows(d_out + at, query, length, H * K, K, BLOCK, BK)
        d_value += _dot(tl.trans(weight).to(grad.dtype), grad)
        mean = _rows(out + at, query, length, H * K, K, BLOCK, BK)
        shared = tl.sum(grad.to(tl.float32) * mean.to(tl.float32), 1)
        d_score = (weight * (_dot(grad, tl.trans(value)) - shared[:, None])).to(q_c.dtype)
        tl.store(d_scores + i.to(tl.int64) * columns + j, d_score, mask=(i < T) & (j < T))
        d_key += _dot(tl.trans(d_score), q_c)
    _store_rows(d_keys + at, first, T, d_key * (factor / 1.4426950408889634), H * K, K, BLOCK, BK)
    _store_rows(d_values + at, first, T, d_value, H * K, K, BLOCK, BK)


@triton.jit
def _backward_queries(
    d_scores, keys, positions, lengths, d_content, d_position, T, left, right, factor, columns,
    WIDE: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of queries: its gradient through the keys, and through the positions."""
    first, item, head, length = _place(T, lengths, H, BLOCK)
    at = item * T * H * K + head * K
    keys += item * T * WIDE + head * K
    d_scores += (item * H + head) * T * columns
    low, high = _reach(first, length, left, right, BLOCK)
    i, n = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    row = d_scores + i.to(tl.int64) * columns
    content, position = tl.zeros([BLOCK, BK], tl.float32), tl.zeros([BLOCK, BK], tl.float32)
    for key in range(low, high, BLOCK):
        d_score = tl.load(row + key + n, mask=(i < length) & (key + n < length), other=0.0)
        content += _dot(d_score, _rows(keys, key, length, WIDE, K, BLOCK, BK))
    for key in range(low, high + BLOCK, BLOCK):
        column = T - first - BLOCK + key  # of the first position; its pairs lie along a diagonal
        j = column + n - (T - 1) + i
        d_score = tl.load(row + j, mask=_seen(i, j, length, left, right), other=0.0)
        position += _dot(d_score, _rows(positions + head * K, column, 2 * T - 1, H * K, K, BLOCK, BK))
    _store_rows(d_content + at, first, T, content * factor, H * K, K, BLOCK, BK)
    _store_rows(d_position + at, first, T, position * factor, H * K, K, BLOCK, BK)


@triton.jit
def _backward_positions(
    d_scores, q_position, lengths, d_positions, B, T, left, right, factor, columns, parts,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk of positions over every ``parts``-th item and all queries: d_positions (parts, 2T - 1, H, K)."""
    chunks = tl.cdiv(2 * T - 1, BLOCK)
    first, head = (tl.program_id(0) % chunks) * BLOCK, (tl.program_id(0) // chunks) % H
    part = tl.program_id(0) // (chunks * H)
    column = first + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([BLOCK, BK], tl.float32)
    reached = (first - (T - 1) <= right) & (first + BLOCK - 1 - (T - 1) >= -left)
    for item in range(part, tl.where(reached, B, part), parts):
        row = tl.cast(item, tl.int64) * T  # of the first frame of this item, among those of all
        length = tl.load(lengths + item).to(tl.int32)
        low = tl.maximum(T - first - BLOCK, 0) // BLOCK * BLOCK
        for query in range(low, tl.minimum(length, length + T - 1 - first), BLOCK):
            i = query + tl.arange(0, BLOCK)[:, None]
            j = column - (T - 1) + i
            place = d_scores + (row * H + head * T + i) * columns + j
            d_score = tl.load(place, mask=_seen(i, j, length, left, right) & (column < 2 * T - 1), other=0.0)
            q_p = _rows(q_position + (row * H + head) * K, query, length, H * K, K, BLOCK, BK)
            total += _dot(tl.trans(d_score), q_p)
    at = d_positions + part.to(tl.int64) * (2 * T - 1) * H * K + head * K
    _store_rows(at, first, 2 * T - 1, total * factor, H * K, K, BLOCK, BK)


@torch.library.custom_op("seqformer::relative_attention", mutates_args=())
def relative_attention(
    q_content: Tensor, q_position: Tensor, keys: Tensor, values: Tensor, positions: Tensor,
    bias: Tensor | None, lengths: Tensor, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries, keys, values (B, T, H, K), positions (2T - 1, H, K), lengths (B,) -> (B, T, H, K), log sums (B, H, T).

    ``bias`` (B, H, T, T) is added to the logits; a query looks ``left`` frames back and ``right`` ahead. All but the
    bias and the lengths have one dtype; the log sums are float32, of base 2.
    """
    q_c, q_p, p = (x.contiguous() for x in (q_content, q_position, positions))
    k, v, wide = _as_they_lie(keys, values)
    B, T, H, K = keys.shape
    out, sums = keys.new_empty(keys.shape), keys.new_empty((B, H, T), dtype=torch.float32)
    tile, sizes = _tile(keys), _sizes(keys)
    with torch.cuda.device_of(keys):
        _forward[(B * H * triton.cdiv(T, tile),)](
            q_c, q_p, k, v, p, k if bias is None else bias, lengths, out, sums, T, left, right, LOG2E * K**-0.5,
            *_strides(bias), wide, BIAS=bias is not None, **sizes,
        )  # fmt: skip
    return out, sums


@relative_attention.register_fake
def _(q_content, q_position, keys, values, positions, bias, lengths, left, right):
    B, T, H, _ = keys.shape
    return keys.new_empty(keys.shape), keys.new_empty((B, H, T), dtype=torch.float32)


@torch.library.custom_op("seqformer::relative_attention_backward", mutates_args=())
def relative_attention_backward(
    d_out: Tensor, q_content: Tensor, q_position: Tensor, keys: Tensor, values: Tensor, positions: Tensor,
    bias: Tensor | None, lengths: Tensor, out: Tensor, sums: Tensor, left: int, right: int, bias_too: bool,
) -> Six:  # fmt: skip
    """Gradients of both queries, keys, values, positions, and of the bias, which is empty unless ``bias_too``."""
    d_out, q_c, q_p, p = (x.contiguous() for x in (d_out, q_content, q_position, positions))
    k, v, wide = _as_they_lie(keys, values)
    B, T, H, K = k.shape
    tile, sizes, columns = _tile(k), _sizes(k), triton.cdiv(T, 16) * 16  # rows that begin at 32 bytes load faster
    d_scores = (k.new_zeros if bias_too else k.new_empty)((B, H, T, columns))
    d_content, d_position, d_keys, d_values = (k.new_empty(k.shape) for _ in range(4))
    parts = min(B, PARTS)
    d_positions = k.new_empty((parts, *p.shape), dtype=torch.float32)
    grid, factor = (B * H * triton.cdiv(T, tile),), K**-0.5
    with torch.cuda.device_of(k):
        _backward_keys[grid](
            q_c, q_p, k, v, p, k if bias is None else bias, lengths, out, sums, d_out, d_keys, d_values, d_scores,
            T, left, right, LOG2E * factor, *_strides(bias), columns, wide,
            BIAS=bias is not None, **sizes | {"num_warps": 8},
        )  # fmt: skip
        _backward_queries[grid](
            d_scores, k, p, lengths, d_content, d_position, T, left, right, factor, columns, wide, **sizes
        )  # fmt: skip
        _backward_positions[(parts * H * triton.cdiv(2 * T - 1, tile),)](
            d_scores, q_p, lengths, d_positions, B, T, left, right, factor, columns, parts, **sizes
        )  # fmt: skip
    d_bias = d_scores[..., :T] if bias_too else k.new_empty(0)
    return d_content, d_position, d_keys, d_values, d_positions.sum(dim=0).to(p.dtype), d_bias


@relative_attention_backward.register_fake
def _(d_out, q_content, q_position, keys, values, positions, bias, lengths, out, sums, left, right, bias_too):
    B, T, H, _ = keys.shape
    d_bias = keys.new_empty((B, H, T, (T + 15) // 16 * 16))[..., :T] if bias_too else keys.new_empty(0)
    return *(keys.new_empty(keys.shape) for _ in range(4)), positions.new_empty(positions.shape), d_bias


def _as_they_lie(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Both with rows evenly apart, and how far: not copied where they are views of one projection."""
    _, T, H, K = keys.shape
    apart = keys.stride(1)
    if all(x.stride() == (T * apart, apart, K, 1) for x in (keys, values)):
        return keys, values, apart
    return keys.contiguous(), values.contiguous(), H * K


def _strides(bias: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if bias is None else bias.stride()[:3]


def _tile(keys: Tensor) -> int:
    """Queries, and keys, of a tile: what leaves a program without registers spilled on an H100, by its compiler."""
    if keys.dtype == torch.float32:
        return 32 if keys.shape[-1] <= 64 else 16
    return 64


def _sizes(keys: Tensor) -> dict[str, int]:
    """Launch settings: loads run a tile ahead where shared memory is as large as an H100's."""
    _, _, heads, width = keys.shape
    padded = max(16, triton.next_power_of_2(width))
    shared = torch.cuda.get_device_properties(keys.device).shared_memory_per_block_optin if keys.is_cuda else 0
    warps = 8 if padded > 64 and keys.dtype != torch.float32 else 4
    sizes = {"H": heads, "K": width, "BK": padded, "BLOCK": _tile(keys)}
    return sizes | {"num_warps": warps, "num_stages": 2 if shared >= 227 << 10 else 1}


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.left, ctx.right = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, d_out: Tensor, _):
    *given, lengths, out, sums = ctx.saved_tensors
    bias, bias_too = given[-1], ctx.needs_input_grad[5]
    *grads, d_bias = relative_attention_backward(d_out, *given, lengths, out, sums, ctx.left, ctx.right, bias_too)
    return *grads, d_bias.to(bias.dtype) if bias_too else None, None, None, None


relative_attention.register_autograd(_backward, setup_context=_save)
