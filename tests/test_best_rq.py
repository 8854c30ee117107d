"""Self-supervised pretraining: codes against brute force, which frames are masked and count, what it is good for."""

import json

import numpy as np
import polars
import pytest
import torch
from scipy import stats
from small_runs import small

from seqformer import InputError, StoreWriter, write_manifest
from seqformer.checkpoint import load_weights
from seqformer.frontends.best_rq import BestRQ
from seqformer.heads.codes import Codes
from seqformer.metrics import masked_accuracy
from seqformer.model import create_model
from seqformer.nn.draws import normal, uniform
from seqformer.nn.mask import mask_of
from seqformer.nn.quantize import RandomProjectionQuantizer
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer

torch.set_num_threads(1)
DENSE = {"name": "dense", "channels": 3}


def test_a_code_is_the_nearest_of_the_codebook():
    quantizer, x = RandomProjectionQuantizer(7, vocab=50, width=4, seed=3), torch.randn(6, 9, 7)
    found = quantizer(x).numpy()
    projection, codes = quantizer.projection.double().numpy(), quantizer.codes.double().numpy()
    for place in np.ndindex(6, 9):
        moved = x[place].double().numpy() @ projection
        gaps = [np.linalg.norm(code / np.linalg.norm(code) - moved / np.linalg.norm(moved)) for code in codes]
        assert found[place] == int(np.argmin(gaps))
    same, other = (RandomProjectionQuantizer(7, vocab=50, width=4, seed=seed) for seed in (3, 4))
    assert torch.equal(same(x), quantizer(x)) and not torch.equal(other(x), quantizer(x))
    assert set(quantizer.state_dict()) == {"projection", "codes"} and not list(quantizer.parameters())


def test_draws_are_of_their_distribution_and_of_their_place_alone():
    seeds, places, columns = torch.tensor([0, 1, 2**31 - 2])[:, None, None], torch.arange(400)[:, None], torch.arange(9)
    flat, bell = (draw(seeds, places, columns).double() for draw in (uniform, normal))
    assert stats.kstest(flat.flatten(), "uniform").pvalue > 0.01 and stats.kstest(bell.flatten(), "norm").pvalue > 0.01
    assert flat.min() > 0 and flat.max() < 1
    for one, two in ((bell[0], bell[1]), (bell[:, 1:], bell[:, :-1]), (bell[..., 1:], bell[..., :-1])):
        assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.05
    assert torch.equal(normal(seeds, places[:50], columns), normal(seeds, places, columns)[:, :50])


def masked(front: BestRQ, items: int, frames: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    mask = torch.ones(items, frames, dtype=torch.bool)
    return front({"x": torch.randn(items, frames, 3)}, mask).targets["codes"] >= 0


@pytest.mark.parametrize("stride, start, span", [(1, 0.02, 10), (4, 0.01, 40), (3, 0.03, 10)])
def test_as_many_frames_are_masked_as_spans_cover(stride, start, span):
    front = BestRQ(DENSE, stride=stride, start=start, span=span, vocab=8)
    found = masked(front.train(), 400, 240).double()
    groups, wide = np.arange(240 // stride), -(-span // stride)
    expected = 1 - (1 - start) ** (stride * np.minimum(groups + 1, wide))
    assert np.abs(found.mean(dim=0).numpy() - expected).max() < 5 * np.sqrt(0.25 / 400)
    assert abs(found.mean() - expected.mean()) < 0.02
    # A run of masked frames is a span or several that overlap: never shorter, but at the end.
    runs = np.diff(np.flatnonzero(np.diff(np.pad(found[:, :-wide].numpy(), ((0, 0), (1, 1))).flatten())))[::2]
    assert min(runs) >= 1 and front.eval() and torch.equal(*masked(front, 2, 240))
    assert not torch.equal(*masked(front.train(), 2, 240))


def test_masked_frames_are_noise_and_codes_are_of_what_was_there():
    front = BestRQ(DENSE, stride=4, start=0.05, span=8, noise=0.5, vocab=30).train()
    x, mask = 5 + torch.randn(50, 61, 3), mask_of(torch.tensor([61] * 49 + [30]), 61)
    torch.manual_seed(1)
    found = front({"x": x}, mask)
    codes = front.codes_of(x.masked_fill(~mask[..., None], 0), mask)
    hidden = (found.targets["codes"] >= 0).repeat_interleave(4, dim=1)[:, :61] & mask
    assert torch.equal(found.targets["codes"][found.targets["codes"] >= 0], codes[found.targets["codes"] >= 0])
    assert torch.equal(found.x[~hidden & mask], x[~hidden & mask]) and not found.x[~mask].any()
    assert abs(found.x[hidden].mean()) < 0.05 and abs(found.x[hidden].std() - 0.5) < 0.05
    assert (found.targets["codes"][-1, 8:] == -1).all() and 0.2 < hidden[mask].double().mean() < 0.5


def test_only_masked_frames_count():
    torch.manual_seed(0)
    head, x, mask = Codes(5, vocab=7), torch.randn(3, 9, 5, requires_grad=True), mask_of(torch.tensor([9, 4, 0]), 9)
    codes, weight = torch.randint(-1, 7, (3, 9)), torch.tensor([1.0, 0.5, 2.0])
    log_p = head(x, mask).double().log_softmax(dim=-1)
    scored = [(i, t) for i in range(3) for t in range(9) if mask[i, t] and codes[i, t] >= 0]
    total = sum(-log_p[i, t, codes[i, t]] * weight[i] for i, t in scored) / sum(weight[i] for i, _ in scored)
    loss = head.loss(x, mask, codes, weight)
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    loss.backward()
    assert {(i, t) for i, t, _ in x.grad.nonzero().tolist()} == set(scored)
    nothing = head.loss(x, mask, torch.full((3, 9), -1))
    nothing.backward()
    assert nothing == 0
    with pytest.raises(ValueError, match="3 codes for 9 frames"):
        head.loss(x, mask, codes[:, :3])
    pairs = head.predict(x, mask, codes)
    hits = [bool(log_p[i, t].argmax() == codes[i, t]) for i, t in scored]
    assert masked_accuracy(pairs, [0.0] * 3) == np.mean(hits) and np.isnan(masked_accuracy([np.zeros((0, 2))]))


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing_from_the_input_to_the_loss(training):
    torch.manual_seed(0)
    body = {"name": "squeezeformer", "dim": 8, "depth": 2, "heads": 2, "kernel": 3, "reduce_at": 0, "recover_at": 1}
    part = {"name": "best_rq", "frontend": DENSE, "start": 0.1, "span": 8, "vocab": 11}
    model = create_model(part, body | {"dropout": 0.0}, {"name": "codes", "vocab": 11}).train(training)
    lengths, x = torch.tensor([64, 23]), torch.randn(2, 90, 3)
    found = []
    for size, fill in ((64, 0.0), (90, float("nan"))):
        mask = mask_of(lengths, size)
        torch.manual_seed(2)
        found.append(model({"x": x[:, :size].masked_fill(~mask[..., None], fill)}, mask, {}, torch.ones(2))["loss"])
    assert found[0] > 1 and abs(found[0] - found[1]) <= 1e-5


def test_a_frontend_that_learns_or_masks_is_refused():
    with pytest.raises(ValueError, match="'tokens' cannot be inside: it learns"):
        BestRQ({"name": "tokens", "vocab": [5], "width": 4})
    with pytest.raises(ValueError, match="masks frames itself"):
        BestRQ({"name": "logmel", "spec_augment": dict(freq_masks=1, freq_width=2, time_masks=1, time_share=0.1)})
    with pytest.raises(ValueError, match="span 0"):
        BestRQ(DENSE, span=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """A run over slow waves, whose masked frames can be guessed from those around them."""
    root, rng, table = tmp_path_factory.mktemp("waves"), np.random.default_rng(0), []
    with StoreWriter(root / "waves", "float32") as store:
        for row in range(24):
            t = np.arange(rng.integers(50, 70))[:, None]
            x = np.cos((0.2 + 0.1 * (row % 3)) * t + rng.uniform(0, 6.3) + np.arange(4)).astype(np.float32)
            place = {"id": f"row{row}", "path": "waves", "row": store.add(x), "frames": len(x)}
            table.append(place | {"label": "abc"[row % 3]})
    write_manifest(table, root / "waves.parquet")
    front = {"name": "best_rq", "frontend": {"name": "dense", "channels": 4, "normalize": "fold"}, "stride": 1}
    front |= {"start": 0.05, "span": 4, "vocab": 8, "width": 4}
    body = {"name": "conformer", "dim": 16, "depth": 1, "heads": 2, "kernel": 9, "stem": "linear", "dropout": 0.1}
    found = small(root / "waves.parquet", frontend=front, backbone=body, head={"name": "codes"})
    found |= {"folds": {"kind": "kfold", "n": 3, "use": 0}, "metric": {"name": "masked_accuracy"}}
    return found | {"train": {"epochs": 8, "device": "cpu", "threads": 1, "save_every": 3}, "optim": {"lr": 0.03}}


def test_pretraining_lowers_the_loss_and_resumes_bit_for_bit_and_another_run_starts_from_it(
    plain, tmp_path, monkeypatch
):
    whole = train_run(plain, tmp_path / "whole", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "whole/small/log.jsonl").read_text().splitlines()]
    losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert losses[-1] < 0.6 * losses[0] and whole["out_of_fold"] > 0.5
    step = FoldTrainer.step

    def stopped(self, work):
        if self.at.step == 22:
            raise KeyboardInterrupt
        return step(self, work)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FoldTrainer, "step", stopped)
        train_run(plain, tmp_path / "again", quiet=True)
    train_run(plain, tmp_path / "again", quiet=True)
    one, two = (load_weights(tmp_path / name / "small/fold0/last") for name in ("whole", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    oof = polars.read_parquet(tmp_path / "whole/small/oof.parquet")
    assert masked_accuracy(oof["prediction"].to_list()) == whole["out_of_fold"]
    later = plain | {"run": "later", "frontend": plain["frontend"]["frontend"], "head": {"name": "classify"}}
    later |= {"init_from": "small", "init_skip": ["frontend.*", "heads.*"], "metric": {"name": "accuracy"}}
    begun = []
    monkeypatch.setattr(FoldTrainer, "work", lambda self: begun.append(self.job.model.state_dict()) or iter(()))
    monkeypatch.setattr("seqformer.train.crossval.finish_fold", lambda *_: None)
    train_run(later, tmp_path / "whole", quiet=True)
    body = [key for key in one if key.startswith("backbone.")]
    assert body and all(torch.equal(begun[0][key], one[key]) for key in body)
    with pytest.raises(InputError, match="init_skip: no weight of the model matches 'nothing"):
        train_run(later | {"run": "not", "init_skip": ["nothing.*"]}, tmp_path / "whole", quiet=True)
