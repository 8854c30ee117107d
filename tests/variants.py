"""Every backbone and every choice it offers, one change at a time, at widths that take milliseconds."""

from seqformer.registry import lookup, names

TINY = dict(dim=12, heads=2, ff_factor=2, dropout=0.0, attention_dropout=0.0)
SMALL = {  # what each backbone needs to be small, by the names that are no preset of another
    "squeezeformer": TINY | dict(depth=3, reduce_at=1, kernel=5),
    "conformer": TINY | dict(depth=2, kernel=4, input_norm=True),
    "fastconformer": TINY | dict(depth=2, stem_channels=4),
    "conformer_swb": TINY | dict(depth=2, max_distance=3),
    "contextnet": dict(channels=(8, 16, 16, 24), reduce_at=(0, 2), convs=2, dropout=0.0),
}
POSITIONS = ("xl", "rotary", "alibi", "t5", "shaw", "none")
STEMS = {  # stem -> the strides it is tested with
    "depthwise_conv2d": (4, 8),
    "conv2d": (4, 2),
    "linear": (1,),
    "vgg": (3, 2),
    "signal": (16, 2),
}
CHOICES = [
    *[dict(positions=positions) for positions in POSITIONS],
    *[dict(stem=stem, stem_stride=stride) for stem, strides in STEMS.items() for stride in strides],
    *[dict(norm_at=norm_at) for norm_at in ("pre", "post", "post_scale_in", "post_scale_out")],
    *[dict(norm=norm, conv_norm=norm) for norm in ("rms", "batch", "layer")],
    *[dict(layout=layout) for layout in ("ACF", "C3AF", ["CF", "AF", "fACf"])],
    *[dict(gate=gate) for gate in ("se", "eca")],
    dict(conv_activation="glu", ff_glu=True, ff_factor=1.5),
    dict(conv_activation="swish", causal=True, context=(4, 0)),
    dict(context=(-1, 2), positions="rotary"),
    dict(reduce_at=[0, 1], recover_at=[2], stem="linear"),  # enough frames at the lowest rate for BatchNorm
    dict(reduce_at=1, recover_at=[]),
    dict(attention_bias=False, conv_bias=False, ff_bias=False, scale_input=False, input_norm=False),
    dict(upsample=True, reduce_at=None, long_skip=True),
    dict(convention="nemo"),
]
CONTEXTNET = [dict(window=5), dict(gate="eca", causal=True), dict(gate="none", width=0.7)]


def small_width(name: str) -> dict:
    """Keywords that make a preset narrow: depth, reduction, stem and kernel stay its own, the head width is odd."""
    return dict(width=1 / 32, dropout=0.0) if name.startswith("contextnet") else TINY | dict(heads=4, dim=36)


def registered(kind: str) -> list[str]:
    """The library's own names; a competition's or another test's are not ours to check."""
    return [name for name in names(kind) if lookup(kind, name).__module__.startswith("seqformer.")]


def is_preset(name: str) -> bool:
    """Whether a backbone is a published size, with no argument left to choose but in_dim."""
    return hasattr(lookup("backbone", name), "preset_of") and name not in SMALL


PRESETS = [name for name in registered("backbone") if is_preset(name)] + ["conformer_swb"]
BACKBONES = [{"name": name} | keywords for name, keywords in SMALL.items()]
NARROW = [{"name": name} | small_width(name) for name in PRESETS if name != "conformer_swb"]
VARIANTS = [{"name": "squeezeformer"} | SMALL["squeezeformer"] | choice for choice in CHOICES]
# Of the pre-norm family, what a Squeezeformer cannot show.
VARIANTS += [
    {"name": "conformer"} | SMALL["conformer"] | choice
    for choice in CHOICES
    if choice.keys() & {"positions", "norm", "causal", "convention"}
]
VARIANTS += [{"name": "contextnet"} | SMALL["contextnet"] | choice for choice in CONTEXTNET]


def changed(part: dict) -> dict:
    """What differs from the small backbone of that name."""
    base = SMALL.get(part["name"], {}) | {"name": part["name"]}
    return {key: value for key, value in part.items() if base.get(key, ...) != value}


def title(part: dict) -> str:
    """A test id."""
    words = [f"{key}={value}" for key, value in changed(part).items()]
    return "-".join([part["name"], *words]).replace(" ", "")
