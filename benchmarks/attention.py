"""Self-attention with relative positions, at the frame rate and width of Squeezeformer-S."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.encoder_peers import nemo_file
from benchmarks.measure import Case
from benchmarks.passes import Runner, drawn, padding_errors, passes, real
from benchmarks.setting import Setting
from seqformer.nn.attention import Attention
from seqformer.nn.positions import sinusoid_table

# A runner's call is run(module, x (B, T, D), lengths (B,)) -> (B, T, D).


def ours(dim: int, heads: int) -> tuple[nn.Module, Callable]:
    return Attention(dim, heads), lambda it, x, n: it(x, real(x, n), table_of(x))


def nemo(dim: int, heads: int) -> tuple[nn.Module, Callable]:
    attention = nemo_file("parts.submodules.multi_head_attention").RelPositionMultiHeadAttention
    module = attention(heads, dim, 0.0, None, None, use_pytorch_sdpa=True)
    return module, lambda it, x, n: it(x, x, x, square(~real(x, n)), table_of(x)[None])


def espnet(dim: int, heads: int) -> tuple[nn.Module, Callable]:
    from espnet.nets.pytorch_backend.transformer.attention import RelPositionMultiHeadedAttention

    module = RelPositionMultiHeadedAttention(heads, dim, 0.0)
    return module, lambda it, x, n: it(x, x, x, table_of(x)[None], real(x, n)[:, None])


def speechbrain(dim: int, heads: int) -> tuple[nn.Module, Callable]:
    from speechbrain.nnet.attention import RelPosMHAXL

    module = RelPosMHAXL(dim, heads)
    return module, lambda it, x, n: it(x, x, x, table_of(x)[None], key_padding_mask=~real(x, n))[0]


def plain(dim: int, heads: int) -> tuple[nn.Module, Callable]:
    module = nn.MultiheadAttention(dim, heads, batch_first=True)
    return module, lambda it, x, n: it(x, x, x, key_padding_mask=~real(x, n), need_weights=False)[0]


PEERS = {"NeMo": nemo, "espnet": espnet, "speechbrain": speechbrain, "torch, no positions": plain}


def table_of(x: Tensor) -> Tensor:
    """(2T - 1, D), made for every call by all."""
    return sinusoid_table(x.shape[1], x.shape[2], x)


def square(hidden: Tensor) -> Tensor:
    """(B, T) -> (B, T, T)."""
    return hidden[:, None, :] | hidden[:, :, None]


def cases(setting: Setting) -> Iterator[list[Case]]:
    dim, heads = (16, 2) if setting.quick else (196, 4)
    shapes = [(2, 20)] if setting.quick else [(8, 250), (1, 1500)]
    torch.manual_seed(0)
    found = {"seqformer": ours(dim, heads)} | setting.built(PEERS, dim, heads)
    runs = {who: partial(run, module.to(setting.device)) for who, (module, run) in found.items()}
    errors = padding_errors(runs, dim, setting)
    for batch, frames in shapes:
        lengths = torch.full((batch,), frames, device=setting.device)
        runners = {
            who: Runner(found[who][0], lambda it, x, run=found[who][1], lengths=lengths: run(it, x, lengths), error)
            for who, error in errors.items()
        }
        for kind in ("forward", "training"):
            x = drawn(batch, frames, dim)
            yield passes(kind, f"{batch} x {frames} x {dim}, {heads} heads", runners, x, setting, inside=True)
