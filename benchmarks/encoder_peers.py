"""Encoders of other libraries at the width, depth, heads, kernel and subsampling of one of ours, where importable.

A peer that has no subsampling of its own gets four frames stacked and one linear layer, which is the cheapest there
is. Attention dropout and layer drop are off, as they are in ours; the other dropouts are 0.1.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.timm_import import import_timm


@dataclass(frozen=True)
class Size:
    """What all encoders of a comparison share; the frame rate is halved before block ``reduce_at`` if it can be."""

    in_dim: int
    dim: int
    depth: int
    heads: int
    kernel: int
    reduce_at: int


class Peer(nn.Module):
    """x (B, T, F), lengths (B,) -> frames (B, T', D), whatever the encoder's own convention is."""

    def __init__(self, encoder: nn.Module, run: Callable, stem: nn.Module | None = None):
        super().__init__()
        self.encoder, self.run, self.stem = encoder, run, stem

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.stem is not None:
            x, lengths = self.stem(x), (lengths + 3) // 4
        return self.run(self.encoder, x, lengths)


class Stack(nn.Module):
    """Four frames as one, and a linear layer: x (B, T, F) -> (B, ceil(T / 4), D)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(4 * in_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
        return self.linear(x.reshape(x.shape[0], x.shape[1] // 4, -1))


def real(x: Tensor, lengths: Tensor) -> Tensor:
    """mask (B, T), True = real frame."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def nemo(name: str) -> type:
    """A class of ``nemo.collections.asr.modules``, by stand-ins for the rest of NeMo where it is not all there."""
    if importlib.util.find_spec("nemo") is not None and importlib.util.find_spec("lightning") is None:
        from benchmarks.stand_ins import install

        install()
    file = {"SqueezeformerEncoder": "squeezeformer_encoder", "ConformerEncoder": "conformer_encoder"}[name]
    return getattr(importlib.import_module(f"nemo.collections.asr.modules.{file}"), name)


def nemo_squeezeformer(size: Size) -> Peer:
    encoder = nemo("SqueezeformerEncoder")(
        feat_in=size.in_dim, n_layers=size.depth, d_model=size.dim, n_heads=size.heads, conv_kernel_size=size.kernel,
        time_reduce_idx=size.reduce_at, time_recovery_idx=size.depth - 1,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(audio_signal=x.transpose(1, 2), length=n)[0].transpose(1, 2))


def nemo_conformer(size: Size) -> Peer:
    encoder = nemo("ConformerEncoder")(
        feat_in=size.in_dim, n_layers=size.depth, d_model=size.dim, n_heads=size.heads, conv_kernel_size=size.kernel,
        subsampling="dw_striding", subsampling_factor=4, dropout_att=0.0, use_pytorch_sdpa=True,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(audio_signal=x.transpose(1, 2), length=n)[0].transpose(1, 2))


def upskyy_squeezeformer(size: Size) -> Peer:
    from squeezeformer.encoder import SqueezeformerEncoder

    encoder = SqueezeformerEncoder(
        size.in_dim, size.dim, size.depth, size.reduce_at, size.depth - 1, size.heads, conv_kernel_size=size.kernel,
        attention_dropout_p=0.0,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(x, n)[0])


def parakeet(size: Size) -> Peer:
    import_timm()  # makes torchvision, which transformers asks for, importable beside a CPU build of torch
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    config = ParakeetEncoderConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.dim, conv_kernel_size=size.kernel, num_mel_bins=size.in_dim, subsampling_factor=4,
        subsampling_conv_channels=size.dim, layerdrop=0.0, attention_dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return Peer(ParakeetEncoder(config), lambda it, x, n: it(x, attention_mask=real(x, n)).last_hidden_state)


PEERS = {
    "NeMo Squeezeformer": nemo_squeezeformer,
    "NeMo Conformer": nemo_conformer,
    "upskyy Squeezeformer": upskyy_squeezeformer,
    "transformers Parakeet": parakeet,
}


@torch.no_grad()
def padding_error(run: Callable[[Tensor, Tensor], Tensor], in_dim: int, device: str, frames: int = 200) -> float:
    """Relative change of an item's frames when it is batched with one twice as long, padded with zeros."""
    x = torch.randn(2, 2 * frames, in_dim, generator=torch.Generator().manual_seed(1)).to(device)
    x[0, frames:] = 0
    lengths = torch.tensor([frames, 2 * frames], device=device)
    alone, together = run(x[:1, :frames], lengths[:1])[0], run(x, lengths)[0]
    return float((together[: len(alone)] - alone).norm() / alone.norm())
