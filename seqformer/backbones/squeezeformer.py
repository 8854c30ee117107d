"""Squeezeformer (Kim et al., NeurIPS 2022, arXiv 2206.00888): attention and convolution each followed by feed-forward.

Sizes as in the official repository; parameters of the encoder, measured there and asserted in our tests:

| preset | depth | dim | heads | reduce / recover before block | parameters |
|---|---|---|---|---|---|
| squeezeformer_xs | 16 | 144 | 4 | 7 / 15 | 9,013,248 |
| squeezeformer_s | 18 | 196 | 4 | 8 / 17 | 18,540,424 |
| squeezeformer_sm | 16 | 256 | 4 | 7 / 15 | 28,151,808 |
| squeezeformer_m | 20 | 324 | 4 | 9 / 19 | 55,580,256 |
| squeezeformer_ml | 18 | 512 | 8 | 8 / 17 | 124,959,744 |
| squeezeformer_l | 22 | 640 | 8 | 10 / 21 | 236,171,520 |
| squeezeformer_s_192 | 18 | 192 | 4 | 8 / 17 | 17,798,784 |
| squeezeformer_m_320 | 20 | 320 | 4 | 9 / 19 | 54,224,640 |

The last two are ours, not the paper's, and load no published weights: s and m at the next lower width whose rows, and
heads of 48 and 80 in place of 49 and 81 channels, are whole multiples of 16 bytes in bfloat16, as a GPU's matrix units
want them. The number in the name is the width, so that neither is taken for the published size.

Where we differ from the official code, so that padding never changes a result: convolutions are padded on both sides
and see zeros in place of padding, lengths are ceil(T / stride), BatchNorm counts real frames only, eps is 1e-5.
``convention="squeezeformer_tf"`` takes all but the third back. The LayerNorm before block 0 is not in the paper's text,
but in its code and its parameter counts.
"""

from seqformer.backbones.encoder import Encoder
from seqformer.backbones.presets import family, preset


@family(Encoder)
def squeezeformer(**changes) -> Encoder:
    return Encoder(**changes)  # the defaults of Encoder are Squeezeformer's, at one frame rate


@preset(Encoder)
def squeezeformer_xs(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=144, depth=16, heads=4, reduce_at=7) | changes))


@preset(Encoder)
def squeezeformer_s(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=196, depth=18, heads=4, reduce_at=8) | changes))


@preset(Encoder)
def squeezeformer_s_192(**changes) -> Encoder:
    return squeezeformer_s(**(dict(dim=192) | changes))


@preset(Encoder)
def squeezeformer_sm(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=256, depth=16, heads=4, reduce_at=7) | changes))


@preset(Encoder)
def squeezeformer_m(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=324, depth=20, heads=4, reduce_at=9) | changes))


@preset(Encoder)
def squeezeformer_m_320(**changes) -> Encoder:
    return squeezeformer_m(**(dict(dim=320) | changes))


@preset(Encoder)
def squeezeformer_ml(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=512, depth=18, heads=8, reduce_at=8) | changes))


@preset(Encoder)
def squeezeformer_l(**changes) -> Encoder:
    return squeezeformer(**(dict(dim=640, depth=22, heads=8, reduce_at=10) | changes))
