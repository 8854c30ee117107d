"""Every number of an analysis against loops over frames, and the command on a tiny run."""

import importlib.util
import json
from types import SimpleNamespace

import polars
import pytest
import torch
from conftest import RATE, TINY, change
from torch import nn
from torch.nn import functional as F

from seqformer.analyze import (
    _stride,
    analyze_model,
    attention_distance,
    learned_factors,
    neighbour_similarity,
    print_depths,
    validation_rows,
)
from seqformer.analyze_plots import draw_attention, draw_scales, draw_similarity
from seqformer.batch import Batch
from seqformer.errors import InputError
from seqformer.model import create_model
from seqformer.nn.mask import mask_of
from seqformer.nn.norm import LearnedScale
from seqformer.predict import TrainedRun
from seqformer.train.crossval import train_run

torch.set_num_threads(1)

LENGTHS = torch.tensor([23, 9, 1, 2])
UNET = dict(dim=8, depth=4, heads=2, ff_factor=2, kernel=3, reduce_at=1, recover_at=3, stem="linear")


def batch(frames: int = 23, features: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, in the padding as well."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(LENGTHS), frames, features, generator=generator), mask_of(LENGTHS, frames)


@pytest.mark.parametrize("distance", [1, 2, 4, 30])
def test_similarity_by_loops(distance):
    x, mask = batch()
    pairs = [
        F.cosine_similarity(x[b, i].double(), x[b, i + distance].double(), dim=0)
        for b, length in enumerate(LENGTHS.tolist())
        for i in range(length - distance)
    ]
    total, count = neighbour_similarity(x, mask, distance)
    assert count == len(pairs)
    assert float(total) == pytest.approx(float(sum(pairs, torch.tensor(0.0))), abs=1e-9)


def test_distance_by_loops():
    _, mask = batch()
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(len(LENGTHS), 3, 23, 23, generator=generator).masked_fill(~mask[:, None, None], float("-inf"))
    weight_BHTT = logit.softmax(dim=-1)
    expected, uniform = [0.0, 0.0, 0.0], 0.0
    for b, length in enumerate(LENGTHS.tolist()):
        for i in range(length):
            for j in range(length):
                uniform += abs(i - j) / length
                for head in range(3):
                    expected[head] += float(weight_BHTT[b, head, i, j]) * abs(i - j)
    found, found_uniform, count = attention_distance(weight_BHTT, mask)
    assert found.tolist() == pytest.approx(expected, abs=1e-5) and count == LENGTHS.sum()
    assert float(found_uniform) == pytest.approx(uniform) == sum((n * n - 1) / 3 for n in LENGTHS.tolist())


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_stride_from_lengths(stride):
    for frames in range(40, 400):
        assert _stride(frames, -(-frames // stride)) == stride


def test_learned_factors():
    block = nn.ModuleDict({"a": LearnedScale(2), "b": nn.ModuleList([LearnedScale(3)]), "c": nn.LayerNorm(4)})
    block["a"].scale.data = torch.tensor([3.0, -4.0])
    assert learned_factors(block, LearnedScale, "scale") == pytest.approx({"a": 12.5**0.5, "b.0": 1.0})
    assert learned_factors(block, nn.LayerNorm, "weight") == {"c": 1.0}
    assert learned_factors(nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm, "weight") == {}


def model_of(**backbone) -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        frontend={"name": "dense", "channels": 6}, backbone=backbone, head={"name": "classify", "vocab": 3}
    )


def as_batch(x: torch.Tensor, mask: torch.Tensor) -> Batch:
    ids = tuple(str(index) for index in range(len(x)))
    return Batch(ids=ids, inputs={"x": x}, mask=mask, targets={}, weight=torch.ones(len(x)))


@torch.no_grad()
@pytest.mark.parametrize("part", [dict(name="squeezeformer", **UNET), dict(name="conformer", dim=8, depth=2, heads=2)])
def test_a_model_by_loops(part):
    """Items one by one and unpadded, in several batches, against one padded batch; and against what blocks return."""
    model, (x, mask) = model_of(**part).eval(), batch()
    alone = [as_batch(x[b : b + 1, :n], mask[b : b + 1, :n]) for b, n in enumerate(LENGTHS.tolist())]
    together, apart = analyze_model(model, [as_batch(x, mask)], 10.0), analyze_model(model, alone, None)
    seen: list[list[torch.Tensor]] = [[] for _ in model.backbone.blocks]
    for item in alone:
        features = model.frontend(item.inputs, item.mask)
        for index, y in enumerate(model.backbone.forward_intermediates(features.x, features.mask)[2]):
            seen[index].append(y[0].double())
    for depth, other, outputs in zip(together, apart, seen, strict=True):
        halved = part["name"] == "squeezeformer" and 1 <= depth.block < 3
        assert depth.stride == model.backbone.stride * (2 if halved else 1) == other.stride
        assert depth.frame_ms == 10 * depth.stride and other.frame_ms is None and other.distance_ms is None
        for distance, value in enumerate(depth.similarity, 1):
            cosines = [F.cosine_similarity(y[distance:], y[:-distance]) for y in outputs if len(y) > distance]
            expected = float(torch.cat(cosines).mean()) if cosines else None
            assert value == pytest.approx(expected, abs=1e-5)
        assert depth.distance_frames == pytest.approx(other.distance_frames, abs=1e-4)
        assert depth.distance_ms == pytest.approx([depth.frame_ms * value for value in depth.distance_frames])
        lengths = [len(y) for y in outputs]
        assert depth.uniform_frames == pytest.approx(sum((n * n - 1) / 3 for n in lengths) / sum(lengths))
        assert len(depth.scales) == (4 if part["name"] == "squeezeformer" else 0) and set(depth.layer_norms)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Plain(nn.Module):
    """A backbone without a stem and without attention, whose blocks give their own mask."""

    stride = 1

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Halving() for _ in range(2))

    def forward(self, x, mask, bias=None):
        for block in self.blocks:
            x, mask = block(x, mask)
        return x, mask


class Halving(nn.Module):
    def forward(self, x, mask):
        return x[:, ::2], mask[:, ::2]


def test_a_backbone_without_attention(capsys):
    model = model_of(name="conformer", dim=8, depth=1, heads=2)
    model.backbone = Plain()
    depths = analyze_model(model, [as_batch(*batch())], None)
    assert [depth.stride for depth in depths] == [2, 4]
    assert [depth.distance_frames for depth in depths] == [[], []] and depths[0].uniform_frames is None
    assert draw_similarity(depths, "plain").startswith(b"\x89PNG")
    print_depths(depths, "plain")
    assert "no attention distances: this backbone has no attention" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """The folder of a run with fold 0 finished."""
    root = tmp_path_factory.mktemp("analyzed")
    train_run(change(TINY, data__manifest=str(corpus), train__epochs=1, augment=[]), root, quiet=True)
    return root / "tiny"


def test_validation_rows(trained, corpus):
    run, table = TrainedRun(trained), polars.read_parquet(corpus)
    folds = dict(polars.read_parquet(trained / "folds.parquet").iter_rows())
    everything = validation_rows(run, 0, 1000)["id"].to_list()
    assert everything == [row for row in table["id"] if folds[row] == 0] and len(everything) == 20
    some = validation_rows(run, 0, 7)["id"].to_list()
    assert (
        len(set(some)) == 7 and set(some) <= set(everything) and {some[0], some[-1]} == {everything[0], everything[-1]}
    )
    with pytest.raises(InputError, match="no finished fold 1; finished: fold0"):
        validation_rows(run, 1, 5)
    with pytest.raises(InputError, match="rows: found 0"):
        validation_rows(run, 0, 0)


def test_the_command(program, trained, tmp_path):
    code, out, _ = program("analyze", trained, "--rows", 8)
    assert code == 0 and "near, mean, far: distance of the heads in ms" in out
    names = {"analysis.json", "similarity.png", "scales.png", "attention.png"}
    assert {path.name for path in (trained / "analysis").iterdir()} == names
    found = json.loads((trained / "analysis" / "analysis.json").read_text())
    assert (found["run"], found["fold"], found["items"]) == ("tiny", 0, 8)
    halved, full = found["blocks"]
    assert (halved["stride"], full["stride"]) == (2, 1)
    assert full["frame_ms"] == 1000 * round(RATE * 0.01) / RATE and halved["frame_ms"] == 2 * full["frame_ms"]
    assert len(full["distance_ms"]) == 2 and all(-1 <= value <= 1 for value in full["similarity"])
    first = {path.name: path.read_bytes() for path in (trained / "analysis").iterdir()}
    assert program("analyze", trained, "--rows", 8, "--out", tmp_path / "again")[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first


def test_the_command_refuses(program, trained, tmp_path, monkeypatch):
    assert "no finished fold 3" in program("analyze", trained, "--fold", 3, "--out", tmp_path / "no")[2]
    assert program("analyze", tmp_path)[0] == 2
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    code, _, err = program("analyze", trained, "--out", tmp_path / "no")
    assert code == 2 and err == "error: plots need matplotlib; install it: pip install 'seqformer[report]'\n"
    assert not (tmp_path / "no").exists()


def test_plots_of_other_depths():
    """Without a known rate, with scales and with more blocks than ticks."""
    depth = SimpleNamespace(stride=4, frame_ms=None, similarity=[0.5, None], layer_norms={"n": 1.0}, scales={"s": 2.0})
    depths = [
        SimpleNamespace(**vars(depth), block=b, distance_frames=[1.0, 2.0 + b], uniform_frames=9.0) for b in range(30)
    ]
    for draw in (draw_similarity, draw_scales, draw_attention):
        assert draw(depths, "thirty").startswith(b"\x89PNG")
