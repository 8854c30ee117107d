"""FastConformer (Rekesh et al. 2023, arXiv 2305.05084): Conformer with a depthwise stem of stride 8 and kernel 9.

Sizes of NeMo's configs; parameters as NeMo counts them, asserted in our tests:

| preset | depth | dim | heads | parameters |
|---|---|---|---|---|
| fastconformer_s | 16 | 176 | 4 | 12,600,240 |
| fastconformer_m | 16 | 256 | 4 | 26,128,640 |
| fastconformer_l | 17 | 512 | 8 | 108,762,112 |

Hugging Face's ParakeetEncoder is the same network.
"""

from seqformer.backbones.conformer import conformer
from seqformer.backbones.encoder import Encoder
from seqformer.backbones.presets import family, preset


@family(Encoder)
def fastconformer(**changes) -> Encoder:
    return conformer(
        **(dict(stem="depthwise_conv2d", stem_stride=8, stem_channels=256, kernel=9, attention_dropout=0.1) | changes)
    )


@preset(Encoder)
def fastconformer_s(**changes) -> Encoder:
    return fastconformer(**(dict(dim=176, depth=16, heads=4) | changes))


@preset(Encoder)
def fastconformer_m(**changes) -> Encoder:
    return fastconformer(**(dict(dim=256, depth=16, heads=4) | changes))


@preset(Encoder)
def fastconformer_l(**changes) -> Encoder:
    return fastconformer(**(dict(dim=512, depth=17, heads=8) | changes))
