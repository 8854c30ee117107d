"""The Conformer hybrid for Switchboard (Zeineldeen et al., ICASSP 2022, arXiv 2111.03442): frames to tied states.

12 blocks, dim 512, 8 heads, as in the authors' configs: a VGG stem with a third of the frames, Shaw's relative
positions (distances clipped at 16), depthwise kernel 8, attention without biases, the stem's output added to that of
every block, and one transposed convolution, shared by all heads, back to the input's frames. The auxiliary heads of
the paper read blocks 4 and 8, our indices 3 and 7:

    backbone: {name: conformer_swb}
    head:
      states: {name: framewise, target: state}
      lower:  {name: framewise, target: state, at: 3, hidden: 512, weight: 0.3}
      middle: {name: framewise, target: state, at: 7, hidden: 512, weight: 0.3}

Features: 40 Gammatone bins in the paper. Parameters: 73,774,816 without heads; with 9,001 states and the auxiliary
heads 88.15 M in training, 78.4 M in use, as the reference counts them.
"""

from seqformer.backbones.conformer import conformer
from seqformer.backbones.encoder import Encoder
from seqformer.backbones.presets import preset


@preset(Encoder)
def conformer_swb(**changes) -> Encoder:
    published = dict(
        dim=512,
        depth=12,
        heads=8,
        kernel=8,
        positions="shaw",
        max_distance=16,
        stem="vgg",
        scale_input=False,
        attention_bias=False,
        attention_dropout=0.1,
        long_skip=True,
        upsample=True,
    )
    return conformer(**(published | changes))
