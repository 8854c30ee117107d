"""From Conformer-CTC-M to Squeezeformer-SM: table 1 of the Squeezeformer paper, one constructor argument a step.

The paper's steps say what is replaced by what; where its code carries a LayerNorm more on the way (the second and
third step have one before each branch and one after), ours does not: 24,576 parameters, and no FLOPs to speak of.
"""

from dataclasses import dataclass

from seqformer.backbones.conformer import conformer_ctc_m
from seqformer.backbones.encoder import Encoder
from seqformer.backbones.presets import preset


@dataclass(frozen=True)
class Step:
    """A rung: its preset, the argument that changed, and published WER in % of test-clean and test-other.

    WER is None where no source was at hand.
    """

    name: str
    changed: str
    test_clean: float | None
    test_other: float | None


LADDER = (
    Step("conformer_ctc_m", "", None, 7.90),
    Step("ladder_unet", "reduce_at=7", None, 7.28),
    Step("ladder_layout", "layout=AFCF", None, 7.12),
    Step("ladder_swish", "conv_activation=swish", None, None),
    Step("ladder_scale", "norm_at=post_scale_in", None, 6.89),
    Step("squeezeformer_sm", "stem=depthwise_conv2d", 2.79, 6.89),
)


@preset(Encoder)
def ladder_unet(**changes) -> Encoder:
    return conformer_ctc_m(**(dict(reduce_at=7) | changes))


@preset(Encoder)
def ladder_layout(**changes) -> Encoder:
    return ladder_unet(**(dict(layout="AFCF") | changes))


@preset(Encoder)
def ladder_swish(**changes) -> Encoder:
    return ladder_layout(**(dict(conv_activation="swish") | changes))


@preset(Encoder)
def ladder_scale(**changes) -> Encoder:
    return ladder_swish(**(dict(norm_at="post_scale_in") | changes))
