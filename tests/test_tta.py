"""Test-time augmentation: the mean over the row and its changes by hand, moved frames back in their places."""

import numpy as np
import polars
import pytest
import torch
from small_runs import LEVELS, small, train, write_rows

from seqformer import InputError, RowReader, read_manifest, register
from seqformer.augment.compose import on_time, on_values
from seqformer.predict import TrainedRun, load_fold, make_dataset, predict_dataset
from seqformer.tta import undo


@register("augment", "test_backwards")
def backwards(p: float = 0.5):
    return on_time(lambda frames, rng: np.arange(frames)[::-1], p)


@register("augment", "test_shuffled")
def shuffled(p: float = 0.5):
    return on_time(lambda frames, rng: rng.permutation(frames), p)


@register("augment", "test_louder")
def louder(p: float = 0.5):
    return on_values(lambda x, rng: x * rng.uniform(1, 2), p)


@register("augment", "test_shorter")
def shorter(p: float = 0.5):
    return on_time(lambda frames, rng: np.arange(frames - 1), p)


@register("augment", "test_longer")
def longer(p: float = 0.5):
    return on_values(lambda x, rng: np.concatenate([x, x[:2]]), p)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that predicts a value a frame, one that predicts a class, and rows that neither saw."""
    root = tmp_path_factory.mktemp("tta")
    rows, new = write_rows(root), write_rows(root, range(50, 56), "new")
    folds = {"kind": "kfold", "n": 3, "use": 0}
    runs = [train(root, small(rows, run="levels", folds=folds, **LEVELS)), train(root, small(rows, folds=folds))]
    return [TrainedRun(run, "cpu") for run in runs], read_manifest(new)


def predicted(run: TrainedRun, table, tta: list) -> dict:
    """Predictions of the run's first fold with another ``tta``."""
    model, targets = load_fold(run.folder / "fold0", run.config, run.device)
    dataset = make_dataset(run.config, table, None, None)
    return next(iter(predict_dataset(model, dataset, targets, run.config.data, tta=tta)[0].values()))


def by_hand(run: TrainedRun, table, change, back) -> dict:
    """Predictions, one row at a time, of arrays changed before and put back after."""
    model, _ = load_fold(run.folder / "fold0", run.config, run.device)
    reader, found = RowReader(table), {}
    (head,) = model.heads
    for index, row_id in enumerate(table["id"]):
        x = torch.from_numpy(np.array(change(reader[index]), dtype=np.float32))[None]
        features = model.frontend({"x": x}, torch.ones(1, x.shape[1], dtype=torch.bool))
        body = model.backbone(features.x, features.mask)
        found[row_id] = back(model.heads[head].predict(*body)[0])
    return found


def test_backwards_is_put_back(world):
    (levels, classes), table = world
    for run, back in ((levels, lambda y: y[::-1]), (classes, lambda y: y)):
        plain = by_hand(run, table, lambda x: x, lambda y: y)
        turned = by_hand(run, table, lambda x: x[::-1], back)
        found = predicted(run, table, [{"name": "test_backwards"}])
        for row_id, value in found.items():
            np.testing.assert_allclose(value, (plain[row_id] + turned[row_id]) / 2, atol=1e-5)
        assert any(np.abs(plain[row] - turned[row]).max() > 1e-4 for row in found)  # the model is no mirror of itself


def test_any_order_of_frames_is_put_back():
    rng = np.random.default_rng(0)
    for frames in (1, 2, 9):
        values, order = rng.standard_normal((frames, 2)), rng.permutation(frames)
        np.testing.assert_array_equal(undo(values[order], order, frames, "x", "r"), values)


def test_draws_are_the_same_each_time(world):
    (levels, _), table = world
    tta = [{"name": "test_shuffled"}, {"name": "test_louder"}, {"name": "test_louder"}]
    one, two = predicted(levels, table, tta), predicted(levels, table, tta)
    assert all(np.array_equal(one[row], two[row]) for row in one)
    three = predicted(levels, table, tta[:2])  # the two louder ones differ
    assert any(not np.allclose(one[row], three[row], atol=1e-6) for row in one)


def test_nothing_changes_without_it(world):
    (levels, _), table = world
    found, wanted = predicted(levels, table, []), levels.predict(table)
    assert all(np.array_equal(found[row], wanted[row]) for row in wanted)
    plain = by_hand(levels, table, lambda x: x, lambda y: y)
    assert all(np.allclose(found[row], plain[row], atol=1e-5) for row in plain)


@pytest.mark.parametrize("name", ["test_shorter", "test_longer"])
def test_frames_that_cannot_be_put_back(world, name):
    (levels, classes), table = world
    with pytest.raises(InputError, match=rf"tta: '{name}' changes the number of frames or loses some of row new5\d"):
        predicted(levels, table, [{"name": name}])
    assert len(predicted(classes, table, [{"name": name}])) == table.height  # one class for all frames needs no places


def test_a_config_with_tta(world, program, tmp_path):
    """Out-of-fold predictions are made as later ones are; --no-tta leaves it out."""
    (levels, _), table = world
    plain = small(levels.config.data.manifest, run="with_tta", tta=[{"name": "test_backwards"}], **LEVELS)
    run = TrainedRun(train(tmp_path, plain | {"folds": {"kind": "kfold", "n": 3, "use": 0}}), "cpu")
    with_it, without = run.predict(table), run.predict(table, tta=False)
    wanted = predicted(run, table, [{"name": "test_backwards"}])
    assert all(np.array_equal(with_it[row], wanted[row]) for row in wanted)
    assert all(np.array_equal(without[row], value) for row, value in predicted(run, table, []).items())
    table.write_parquet(tmp_path / "new.parquet")
    for option, kept in (("--tta", with_it), ("--no-tta", without)):
        assert program("predict", run.folder, tmp_path / "new.parquet", tmp_path / "o.parquet", option)[0] == 0
        for row in polars.read_parquet(tmp_path / "o.parquet").iter_rows(named=True):
            np.testing.assert_allclose(row["prediction"], kept[row["id"]], atol=1e-6)
    oof = polars.read_parquet(run.folder / "oof.parquet")
    rows = read_manifest(run.config.data.manifest).filter(polars.col("id").is_in(oof["id"].implode()))
    again = run.predict(rows)
    for row in oof.iter_rows(named=True):
        np.testing.assert_allclose(row["prediction"], again[row["id"]], atol=1e-6)


def test_mistakes(tmp_path):
    for part, wanted in {"test_backward": "did you mean 'test_backwards'", "": "unknown augment"}.items():
        with pytest.raises(InputError, match=wanted):
            train(tmp_path, small("x.parquet", tta=[{"name": part}]))
    with pytest.raises(InputError, match=r"'test_louder' has p 0.5; there, every transform is always applied"):
        train(tmp_path, small("x.parquet", tta=[{"name": "test_louder", "p": 0.5}]))
    assert not list(tmp_path.iterdir())
