"""Conformer (Gulati et al., Interspeech 2020, arXiv 2005.08100): attention and convolution between half feed-forwards.

| preset | depth | dim | heads | kernel | parameters | source of the size |
|---|---|---|---|---|---|---|
| conformer_ctc_s | 16 | 144 | 4 | 31 | 8,711,136 | baseline of the Squeezeformer paper, official repository |
| conformer_ctc_m | 16 | 256 | 4 | 31 | 27,328,000 | the same |
| conformer_ctc_l | 18 | 512 | 8 | 31 | 121,436,160 | the same |
| conformer_s, _m, _l | 16, 16, 17 | 144, 256, 512 | 4, 4, 8 | 32 | not published alone | Conformer paper, table 1 |

``input_norm`` is the LayerNorm of the official Squeezeformer repository before block 0, which the paper does not have.
Padding is handled as in ``squeezeformer.py``.
"""

from seqformer.backbones.encoder import Encoder
from seqformer.backbones.presets import family, preset


@family(Encoder)
def conformer(**changes) -> Encoder:
    macaron = dict(layout="fACf", norm_at="pre", conv_activation="glu", stem="conv2d", input_norm=False)
    return Encoder(**(macaron | changes))


@preset(Encoder)
def conformer_ctc_s(**changes) -> Encoder:
    return conformer(**(dict(dim=144, depth=16, heads=4, input_norm=True) | changes))


@preset(Encoder)
def conformer_ctc_m(**changes) -> Encoder:
    return conformer(**(dict(dim=256, depth=16, heads=4, input_norm=True) | changes))


@preset(Encoder)
def conformer_ctc_l(**changes) -> Encoder:
    return conformer(**(dict(dim=512, depth=18, heads=8, input_norm=True) | changes))


@preset(Encoder)
def conformer_s(**changes) -> Encoder:
    return conformer(**(dict(dim=144, depth=16, heads=4, kernel=32) | changes))


@preset(Encoder)
def conformer_m(**changes) -> Encoder:
    return conformer(**(dict(dim=256, depth=16, heads=4, kernel=32) | changes))


@preset(Encoder)
def conformer_l(**changes) -> Encoder:
    return conformer(**(dict(dim=512, depth=17, heads=8, kernel=32) | changes))
