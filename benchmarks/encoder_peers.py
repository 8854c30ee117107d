"""Encoders of other libraries at the width, depth, heads, kernel and subsampling of one of ours, where importable.

A peer that has no subsampling of its own gets four frames stacked and one linear layer, which is the cheapest there
is. Attention dropout and layer drop are off, as they are in ours; the other dropouts are 0.1.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import stand_ins
from benchmarks.passes import real
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


def nemo_file(name: str) -> ModuleType:
    """A file of ``nemo.collections.asr``, with stand-ins for the rest of NeMo where that is not all there."""
    if importlib.util.find_spec("nemo") is not None and importlib.util.find_spec("lightning") is None:
        stand_ins.install()
    return importlib.import_module(f"nemo.collections.asr.{name}")


def nemo_squeezeformer(size: Size) -> Peer:
    encoder = nemo_file("modules.squeezeformer_encoder").SqueezeformerEncoder(
        feat_in=size.in_dim, n_layers=size.depth, d_model=size.dim, n_heads=size.heads, conv_kernel_size=size.kernel,
        time_reduce_idx=size.reduce_at, time_recovery_idx=size.depth - 1,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(audio_signal=x.transpose(1, 2), length=n)[0].transpose(1, 2))


def nemo_conformer(size: Size) -> Peer:
    encoder = nemo_file("modules.conformer_encoder").ConformerEncoder(
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


def wav2vec2_bert(size: Size) -> Peer:
    import_timm()
    from transformers import Wav2Vec2BertConfig
    from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertEncoder

    config = Wav2Vec2BertConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.dim, conv_depthwise_kernel_size=size.kernel, layerdrop=0.0,
        hidden_dropout=0.1, activation_dropout=0.1, attention_dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return Peer(Wav2Vec2BertEncoder(config), masked_states, Stack(size.in_dim, size.dim))


def wav2vec2_conformer(size: Size) -> Peer:
    import_timm()
    from transformers import Wav2Vec2ConformerConfig
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

    config = Wav2Vec2ConformerConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.dim, conv_depthwise_kernel_size=size.kernel, layerdrop=0.0, hidden_act="swish",
        attention_dropout=0.0, num_conv_pos_embedding_groups=1, num_conv_pos_embeddings=1,  # unused, but made
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return Peer(Wav2Vec2ConformerEncoder(config), masked_states, Stack(size.in_dim, size.dim))


def masked_states(encoder: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    return encoder(x, attention_mask=real(x, lengths)).last_hidden_state


def speechbrain_conformer(size: Size) -> Peer:
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
    from speechbrain.nnet.attention import RelPosEncXL

    encoder = ConformerEncoder(size.depth, size.dim, 4 * size.dim, size.heads, size.kernel, dropout=0.1)
    encoder.positions = RelPosEncXL(size.dim)
    return Peer(
        encoder,
        lambda it, x, n: it(x, src_key_padding_mask=~real(x, n), pos_embs=it.positions(x))[0],
        Stack(size.in_dim, size.dim),
    )


def torchaudio_conformer(size: Size) -> Peer:
    from torchaudio.models.conformer import Conformer

    encoder = Conformer(size.dim, size.heads, 4 * size.dim, size.depth, size.kernel, dropout=0.1)
    return Peer(encoder, lambda it, x, n: it(x, n)[0], Stack(size.in_dim, size.dim))


def espnet_conformer(size: Size) -> Peer:
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    encoder = ConformerEncoder(
        size.in_dim, size.dim, size.heads, 4 * size.dim, size.depth, macaron_style=True, rel_pos_type="latest",
        cnn_module_kernel=size.kernel,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(x, n)[0])


def lucidrains_conformer(size: Size) -> Peer:
    from conformer import Conformer

    encoder = Conformer(
        size.dim, depth=size.depth, dim_head=size.dim // size.heads, heads=size.heads, conv_kernel_size=size.kernel,
        attn_dropout=0.0, ff_dropout=0.1, conv_dropout=0.1, conv_expansion_factor=1,
    )  # fmt: skip
    return Peer(encoder, lambda it, x, n: it(x), Stack(size.in_dim, size.dim))


PEERS = {
    "NeMo Squeezeformer": nemo_squeezeformer,
    "NeMo Conformer": nemo_conformer,
    "upskyy Squeezeformer": upskyy_squeezeformer,
    "transformers Parakeet": parakeet,
    "transformers Wav2Vec2-BERT": wav2vec2_bert,
    "transformers Wav2Vec2-Conformer": wav2vec2_conformer,
    "speechbrain Conformer": speechbrain_conformer,
    "torchaudio Conformer": torchaudio_conformer,  # no positions
    "espnet Conformer": espnet_conformer,
    "lucidrains Conformer": lucidrains_conformer,  # takes no mask
}
