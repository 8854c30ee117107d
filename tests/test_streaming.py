"""A stream of audio gives what the whole gives, for every chunk size, when it can, at a cost that does not grow."""

import numpy as np
import pytest
import torch
from test_long_audio import talkative

import seqformer
from seqformer.batch import Batch
from seqformer.data.text import Characters
from seqformer.decode.greedy import collapse
from seqformer.decode.spans import GreedyReader
from seqformer.errors import InputError
from seqformer.model import create_model
from seqformer.nn.mask import mask_of
from seqformer.nn.subsample import make_stem
from seqformer.speech.streaming import Remembering

torch.set_num_threads(1)

RATE, HOP = 4000, 40
LOGMEL = {"name": "logmel", "rate": RATE, "mels": 12, "normalize": "none"}
BODY = dict(dim=16, depth=3, heads=2, kernel=5, causal=True, context=[7, 0], dropout=0.0)
CONFORMER = {"name": "conformer"} | BODY
UNET = {"name": "squeezeformer"} | BODY | dict(stem="linear", reduce_at=[0, 1], recover_at=[2])
PREDICTORS = ("lstm", "stateless")
CASES = {
    "conformer": (LOGMEL, CONFORMER),
    "floor": (LOGMEL | {"frames": "floor", "guard": "add"}, CONFORMER | {"long_skip": True, "scale_input": False}),
    "gammatone": ({"name": "gammatone", "rate": RATE, "bands": 12, "normalize": "none"}, CONFORMER),
    "squeezeformer": (LOGMEL, {"name": "squeezeformer"} | BODY | dict(reduce_at=1)),
    "unet": (LOGMEL, UNET),
    "reduced": (LOGMEL, UNET | dict(recover_at=[])),
    **{kind: (LOGMEL, CONFORMER | dict(positions=kind)) for kind in ("rotary", "alibi", "t5", "shaw", "none")},
    **{kind: (LOGMEL, CONFORMER | dict(stem=kind)) for kind in ("vgg", "signal")},
}
CTC = {"name": "ctc"}
TRANSDUCERS = [
    {"name": "transducer", "predictor": kind, "predictor_dim": 8, "joint": 8, "max_symbols": 2} for kind in PREDICTORS
]
CHUNKS = (17, 31, HOP - 1, HOP, HOP + 1, 160, 333, 1000, 3 * RATE // 2, 10**6)


def make(front: dict, body: dict, head: dict = CTC):
    torch.manual_seed(0)
    model = create_model(front, body, head | {"vocab": 9}).eval()
    for module in model.modules():  # statistics as of a trained model
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.tokenizer = Characters("abcdefg ")
    return model


def audio(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model, x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the model on the recording, in a batch with a longer one."""
    longer = torch.zeros(2, len(x) + 500)
    longer[0, : len(x)], longer[1] = x, 0.3
    features = model.frontend({"x": longer}, mask_of(torch.tensor([len(x), len(x) + 500]), len(x) + 500))
    y, mask = model.backbone(features.x, features.mask)
    return next(iter(model.heads.values()))(y, mask)[0, mask[0]]


def streamed(model, x: torch.Tensor, chunk: int) -> tuple[torch.Tensor, seqformer.Stream]:
    stream = seqformer.Stream(model)
    return torch.cat([*(stream.push(piece) for piece in x.split(chunk)), stream.finish()]), stream


@pytest.mark.parametrize("case", CASES)
def test_a_stream_equals_the_whole_for_every_chunk_size(case):
    model, x = make(*CASES[case]), audio(2777)
    expected = whole(model, x)
    best = expected.argmax(dim=-1)[None]
    units = collapse(best, torch.ones_like(best, dtype=torch.bool))[0]
    for chunk in CHUNKS if case in ("conformer", "unet") else (333, 1000):
        found, stream = streamed(model, x, chunk)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert [span.unit for span in stream.spans] == units and stream.text == model.tokenizer.decode(units)


@pytest.mark.parametrize("head", TRANSDUCERS, ids=PREDICTORS)
def test_a_transducer_hears_in_a_stream_what_it_hears_in_the_whole(head):
    model, x = make(*CASES["unet"], head), audio(9000)
    talkative(model)
    batch = Batch(["a"], {"x": x[None]}, torch.ones(1, len(x)).bool(), {}, torch.ones(1))
    units = model.predict(batch)["transducer"][0]
    for chunk in (333, 1000):
        found, stream = streamed(model, x, chunk)
        torch.testing.assert_close(found, whole(model, x), rtol=0, atol=1e-5)
        assert [span.unit for span in stream.spans] == units and len(set(units)) > 2


def test_every_length_ends_as_the_whole():
    model = make(*CASES["squeezeformer"])
    for samples in (1, HOP - 1, HOP, 5 * HOP, 5 * HOP + 1, 8 * HOP - 1, 8 * HOP, 8 * HOP + 1, 9 * HOP, 13 * HOP + 7):
        found, _ = streamed(model, audio(samples), 100)
        torch.testing.assert_close(found, whole(model, audio(samples)), rtol=0, atol=1e-5)
    stream = seqformer.Stream(model)
    assert stream.push(torch.zeros(0)).shape == stream.finish().shape == (0, 9) and stream.text == ""


@pytest.mark.parametrize("case", ["conformer", "unet", "squeezeformer", "vgg"])
def test_a_frame_is_there_after_the_delay_and_sees_nothing_later(case):
    model, x = make(*CASES[case]), audio(4000)
    stream, counts = seqformer.Stream(model), []
    for sample in x[:2500]:
        counts.append(len(stream.push(sample[None])))
    first = [index for index, count in enumerate(counts, start=1) for _ in range(count)]
    step = HOP * model.backbone.stride
    late = [at - step * frame for frame, at in enumerate(first)]
    assert max(late) == stream.delay and stream.frame_s == step / RATE
    changed = x.clone()
    changed[first[10] :] = audio(4000, seed=1)[first[10] :]
    torch.testing.assert_close(whole(model, changed)[:11], whole(model, x)[:11], rtol=0, atol=1e-5)
    assert not torch.allclose(whole(model, changed)[11 + 8 :], whole(model, x)[11 + 8 :], atol=1e-3)


def test_memory_and_work_do_not_grow_with_the_past():
    model, sizes = make(*CASES["squeezeformer"]), []
    stream = seqformer.Stream(model)
    for second in range(10):
        stream.push(audio(RATE, second))
        held = [stream.samples.held, stream.frames.held]
        held += [module.held for module in stream.backbone.modules() if isinstance(module, Remembering)]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in held))
    assert max(sizes[6:]) <= max(sizes[:6]) < 50_000  # bytes


def test_the_model_is_left_as_it_was_and_weights_are_shared():
    model, x = make(*CASES["conformer"]), audio(3000)
    expected = whole(model, x)
    stream = seqformer.Stream(model)
    stream.push(x)
    assert torch.equal(whole(model, x), expected) and not any(isinstance(m, Remembering) for m in model.modules())
    theirs = {parameter.data_ptr() for parameter in stream.backbone.parameters()}
    assert theirs <= {parameter.data_ptr() for parameter in model.backbone.parameters()}


@pytest.mark.parametrize(
    ("kind", "stride"),
    [
        ("linear", 1),
        ("vgg", 3),
        *[(kind, 2**n) for kind in ("conv2d", "depthwise_conv2d", "signal") for n in (1, 2, 3)],
    ],
)
def test_a_stem_sees_what_its_reach_says(kind, stride):
    """By NaN, which spreads to whatever sees it."""
    torch.manual_seed(0)
    stem = make_stem(kind, 8, 6, stride).eval()
    frames, (left, right) = 96, stem.reach
    for place in range(40, 56):
        x = torch.randn(1, frames, 8)
        x[:, place] = torch.nan
        seen = stem(x, torch.ones(1, frames, dtype=torch.bool))[0][0].isnan().any(dim=1).nonzero().flatten().tolist()
        assert seen == [j for j in range(frames // stem.stride) if -left <= place - stem.stride * j <= right]


@pytest.mark.parametrize(("front", "body", "told"), [
    ({"normalize": "utterance"}, {}, "normalize is 'utterance', which needs the whole recording; expected 'none'"),
    ({"top_db": 80.0}, {}, "top_db is 80.0"),
    ({}, {"causal": False}, "a convolution sees later frames; expected causal: true"),
    ({}, {"context": None}, r"attention has context None; expected \[frames before, 0\]"),
    ({}, {"context": [4, 1]}, "attention has context"),
    ({}, {"context": [-1, 0]}, "attention has context"),
    ({}, {"gate": "se"}, "a gate averages the whole recording"),
    ({}, {"upsample": True}, "upsample is true"),
    ({}, {"convention": "nemo", "reduce_at": 1}, "a convolution sees later frames"),
    ({}, {"convention": "squeezeformer_tf"}, "convention is 'squeezeformer_tf'"),
])  # fmt: skip
def test_a_model_that_needs_the_whole_is_refused(front, body, told):
    with pytest.raises(InputError, match=told) as error:
        seqformer.Stream(make(LOGMEL | front, CONFORMER | body))
    assert str(error.value).startswith("the model cannot read a stream: ") and "\n" not in str(error.value)


def test_faults_of_use_are_one_line():
    stream = seqformer.Stream(make(*CASES["conformer"]))
    with pytest.raises(InputError, match=r"samples have shape \(2, 50\); expected one axis"):
        stream.push(np.zeros((2, 50)))
    with pytest.raises(InputError, match="samples are int16; expected floats"):
        stream.push(np.zeros(50, np.int16))
    stream.finish()
    with pytest.raises(InputError, match="the stream has ended"):
        stream.push(np.zeros(5))


def test_spans_are_what_collapse_finds_however_it_is_cut():
    rng = np.random.default_rng(0)
    for _ in range(50):
        log_probs = np.log(rng.dirichlet(np.ones(3), size=rng.integers(1, 40)))
        spans, cut, units = GreedyReader(), rng.integers(0, len(log_probs) + 1), log_probs.argmax(axis=1)
        spans.push(torch.from_numpy(log_probs[:cut]))
        spans.push(torch.from_numpy(log_probs[cut:]) + 5)  # logits are as good
        best = torch.from_numpy(units)[None]
        assert [span.unit for span in spans.found] == collapse(best, torch.ones_like(best, dtype=torch.bool))[0]
        frames = np.zeros(len(units), dtype=int)
        for unit, start, end, posterior in spans.found:
            assert (units[start:end] == unit).all()
            assert posterior == pytest.approx(np.exp(log_probs[start:end, unit]).mean(), rel=1e-5)
            frames[start:end] = unit
        assert (frames == units).all()
