"""The rows of an epoch: schedules, shares and filters against brute force, the same in every process."""

import functools

import numpy as np
import polars
import pytest
import torch
from conftest import DENSE, poisoned

from seqformer import InputError
from seqformer.checkpoint import load_weights
from seqformer.config import Sampling, Until, build_config
from seqformer.data.sampling import RowSampler, count_repeats, scheduled
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer

TABLE = polars.DataFrame(
    {
        "id": [f"r{row:03d}" for row in range(120)],
        "snr": [float(row % 7) for row in range(120)],
        "phrase": [f"p{row % 11}" if row % 10 else None for row in range(120)],
        "split": ["supplemental" if row >= 40 else "train" for row in range(120)],
    }
)


def sampler(table: polars.DataFrame = TABLE, **given) -> RowSampler:
    return RowSampler(table, Sampling(**given), [0, 1])


def test_a_schedule_holds_until_the_next_entry():
    steps = [(0, 1.0), (3, 0.5), (7, 0.0)]
    wanted = [1.0] * 3 + [0.5] * 4 + [0.0] * 5
    assert [scheduled(steps, epoch) for epoch in range(12)] == wanted


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_shares_are_the_weights_to_the_power(power):
    found = sampler(weight="snr", power=[(0, power)], items=200_000)
    drawn = np.bincount(found(4), minlength=120) / 200_000
    wanted = np.array([(row % 7) ** power for row in range(120)])
    np.testing.assert_allclose(drawn, wanted / wanted.sum(), atol=5 * np.sqrt(wanted.max() / wanted.sum() / 200_000))
    assert not drawn[wanted == 0].any()


def test_power_0_is_the_plain_epoch():
    found = sampler(weight="snr", power=[(0, 1.0), (5, 0.0)])
    assert len(set(found(4).tolist())) < 120
    np.testing.assert_array_equal(found(5), np.arange(120))


@pytest.mark.parametrize("items", [1, 50, 120, 121, 300])
def test_items_without_a_weight_are_even(items):
    counts = np.bincount(sampler(items=items)(0), minlength=120)
    assert counts.sum() == items and counts.max() - counts.min() <= 1


def test_one_row_for_each_value_of_a_column():
    """All rows of the main split, one supplemental row for each phrase, all of those without one; each in its turn."""
    found, seen = sampler(once_per="phrase", once_where={"split": "supplemental"}), set()
    for epoch in range(200):
        rows = found(epoch)
        main, rest = rows[rows < 40], rows[rows >= 40]
        np.testing.assert_array_equal(main, np.arange(40))
        phrases = [TABLE["phrase"][int(row)] for row in rest]
        named = [phrase for phrase in phrases if phrase]
        assert sorted(named) == sorted({f"p{number}" for number in range(11)}) and phrases.count(None) == 8
        seen |= set(rest.tolist())
    assert seen == set(range(40, 120))


def test_rows_leave_at_an_epoch():
    found = sampler(until=Until({"split": ["supplemental"]}, 3), once_per="phrase")
    assert any(row >= 40 for row in found(2)) and all(row < 40 for epoch in (3, 9) for row in found(epoch))


def test_seed_and_epoch_decide():
    given = {"weight": "snr", "items": 60}
    first = sampler(**given)(3).tolist()
    assert sampler(**given)(3).tolist() == first != sampler(**given)(4).tolist()
    assert RowSampler(TABLE, Sampling(**given), [1, 1])(3).tolist() != first


def test_repeats_are_numbered():
    rows = np.random.default_rng(0).integers(0, 9, 60)
    wanted = [rows[:place].tolist().count(row) for place, row in enumerate(rows.tolist())]
    assert count_repeats(rows).tolist() == wanted and count_repeats(rows[:0]).tolist() == []


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({"weight": "snt"}, "sampling.weight: the manifest has no column 'snt'; did you mean 'snr'?"),
        ({"weight": "split"}, "sampling.weight: column 'split' holds String; expected numbers"),
        ({"weight": "snr", "power": [(0, -1.0)]}, "'snr' must be above 0, for a power below 0, but not in r000, r007"),
        ({"once_per": "phrases"}, "sampling.once_per: the manifest has no column 'phrases'; did you mean 'phrase'?"),
        ({"once_per": "phrase", "once_where": {"split": "x"}}, "sampling.once_where: no training row has split = x"),
        ({"until": Until({"split": ["train", "supplemental"]}, 2)}, "no training row is left from epoch 2 on"),
    ],
)
def test_refused(given, wanted):
    with pytest.raises(InputError) as caught:
        sampler(**given)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    "section, wanted",
    [
        ({"power": [[1, 1.0]]}, "sampling.power: found [[1, 1.0]]; expected [epoch, power] from epoch 0 upwards"),
        ({"power": [[0, 1.0], [0, 2.0]]}, "expected [epoch, power] from epoch 0 upwards"),
        ({"items": 0}, "sampling.items is 0; it must be above 0"),
        ({"once_where": {"a": 1}}, "sampling.once_where needs sampling.once_per"),
        ({"until": {"where": {}, "epoch": 3}}, "sampling.until needs a where"),
        ({"until": {"epoch": 3}}, "sampling.until.where is missing"),
    ],
)
def test_a_faulty_section_is_one_line(tiny, section, wanted):
    with pytest.raises(InputError) as caught:
        build_config(tiny(sampling=section))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_an_epoch_trains_on_what_was_drawn(tiny, tmp_path, monkeypatch):
    """The rows and weights that reach the model are those of the sampler; a row drawn again is augmented otherwise."""
    manifest = poisoned(tmp_path, [])
    table = polars.read_parquet(manifest).with_columns(weight=polars.Series([float(row % 4) for row in range(40)]))
    table.write_parquet(manifest)
    seen, step = [], FoldTrainer.step

    def noted(self, work):
        for batch in work.group:
            lengths = batch.mask.sum(dim=1)
            arrays = [x[:n].numpy().tobytes() for x, n in zip(batch.inputs["x"], lengths, strict=True)]
            seen.extend(zip([self.at.epoch] * len(arrays), batch.ids, batch.weight.tolist(), arrays, strict=True))
        return step(self, work)

    monkeypatch.setattr(FoldTrainer, "step", noted)
    sampling = {"weight": "weight", "items": 30, "power": [[0, 2.0], [2, 0.0]]}
    plain = tiny(data__manifest=str(manifest), sampling=sampling, train__weight_power=[[0, 1.0], [1, 0.5], [2, 0.0]])
    plain |= {"augment": [{"name": "gain"}], "frontend": DENSE["frontend"]}
    plain["data"]["batch_frames"] = DENSE["data__batch_frames"]
    train_run(plain, tmp_path, quiet=True)
    rows = table.filter(polars.col("half") != 0)
    section = build_config(plain).sampling
    for epoch, power in enumerate((1.0, 0.5, 0.0)):
        ids = [row_id for at, row_id, _, _ in seen if at == epoch]
        assert sorted(ids) == sorted(rows["id"].to_numpy()[RowSampler(rows, section, [7, 0])(epoch)].tolist())
        for at, row_id, weight, _ in seen:
            given = int(row_id[3:]) % 4
            assert at != epoch or weight == pytest.approx(given**power if given else 0)
    assert len({array for *_, array in seen}) == len(seen) == 90


def test_sampling_is_for_rows(tiny, tmp_path, monkeypatch):
    from seqformer.data.dataset import SequenceDataset

    monkeypatch.setattr(SequenceDataset, "__len__", lambda self: 5)
    with pytest.raises(InputError, match="sampling draws rows, but dataset 'rows' makes its examples up"):
        train_run(tiny(sampling={"items": 3}), tmp_path, quiet=True)


def test_begin_epoch_reaches_every_module_that_asks(tiny, tmp_path, monkeypatch):
    """At the start of each epoch, and again when a run goes on in the middle of one."""
    from seqformer.heads.ctc import CTC

    called, save = [], FoldTrainer.save
    monkeypatch.setattr(CTC, "begin_epoch", lambda self, epoch: called.append(epoch), raising=False)

    def save_and_stop(self, name):
        save(self, name)
        if self.at.step == 5 and len(called) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldTrainer, "save", save_and_stop)
    plain = tiny(train__epochs=3, train__save_every=1)
    with pytest.raises(KeyboardInterrupt):
        train_run(plain, tmp_path, quiet=True)
    train_run(plain, tmp_path, quiet=True)
    assert called == [0, 1, 1, 2]


def test_a_frontend_is_fitted_on_training_rows_once(tiny, tmp_path, monkeypatch):
    from seqformer.frontends.dense import Dense

    manifest, seen = poisoned(tmp_path, []), []

    def fit(self, inputs):
        self.fitted.fill_(1 + sum(len(row["x"]) for row in inputs))
        seen.append(float(self.fitted))

    init = Dense.__init__

    @functools.wraps(init)
    def with_buffer(self, *arguments, **keywords):
        init(self, *arguments, **keywords)
        self.register_buffer("fitted", torch.zeros(()))

    monkeypatch.setattr(Dense, "__init__", with_buffer)
    monkeypatch.setattr(Dense, "fit", fit, raising=False)
    plain = tiny(data__manifest=str(manifest), augment=[], train__epochs=1, folds__use="all")
    plain["frontend"], plain["data"]["batch_frames"] = {"name": "dense", "channels": 4}, 200
    train_run(plain, tmp_path, quiet=True)
    table = polars.read_parquet(manifest)
    wanted = [1 + table.filter(polars.col("half") != fold)["frames"].sum() for fold in (0, 1)]
    assert seen == wanted
    held = [float(load_weights(tmp_path / f"tiny/fold{fold}/last")["frontend.fitted"]) for fold in (0, 1)]
    assert held == wanted


def test_weights_of_a_head_are_values(tmp_path):
    from seqformer.data.targets import fit_targets

    table = TABLE.head(3).with_columns(
        votes=polars.Series([1, 2, 3]), frame=polars.Series([[1, 2], [0], [3]]), bad=polars.Series([1.0, -2.0, 0.0])
    )
    found = fit_targets(table, ["split"], None, table, ["votes", "frame"])
    row = {"split": "train", "votes": 2, "frame": [1, 2]}
    values, axes = found.encode(row)
    assert values["votes"] == 2.0 and values["frame"].tolist() == [1.0, 2.0] and axes["frame"] == "T"
    assert values["votes"].dtype == values["frame"].dtype == np.float32
    for weights, wanted in (
        ("bad", "'bad': weights must be 0 or more, unlike r001"),
        ("phrase", "weights are numbers"),
    ):
        with pytest.raises(InputError, match=wanted):
            fit_targets(table, ["split"], None, table, [weights])
    with pytest.raises(InputError, match="the head's weights 'vote' is no column"):
        fit_targets(table, ["split"], None, table, ["vote"])
