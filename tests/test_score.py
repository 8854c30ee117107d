"""What a metric is handed: every frame or item with a truth, once, whatever the answers look like."""

import numpy as np
import pytest

from seqformer.metrics import mcrmse
from seqformer.predict import score


def test_frames_of_several_values_are_scored_by_column():
    rng = np.random.default_rng(0)
    lengths = [5, 1, 9]
    found = [rng.normal(size=(length, 3)) for length in lengths]
    truth = [np.where(rng.random((length, 3)) < 0.3, np.nan, rng.normal(size=(length, 3))) for length in lengths]
    truth[1][:] = np.nan
    gaps = [[], [], []]
    for guess, wanted in zip(found, truth, strict=True):
        for frame in range(len(guess)):
            for column in range(3):
                if not np.isnan(wanted[frame, column]):
                    gaps[column].append((guess[frame, column] - wanted[frame, column]) ** 2)
    by_hand = np.mean([np.sqrt(np.mean(gaps[column])) for column in (0, 2)])
    assert score({"name": "mcrmse", "columns": [0, 2]}, found, truth) == pytest.approx(by_hand)


def test_several_values_of_an_item_are_one_row():
    rng = np.random.default_rng(1)
    found, truth = list(rng.normal(size=(20, 4))), list(rng.normal(size=(20, 4)))
    assert score({"name": "mcrmse"}, found, truth) == pytest.approx(mcrmse(np.array(found), np.array(truth)))
    shares = list(rng.dirichlet(np.ones(3), 20))
    assert score({"name": "kl"}, shares, shares) == pytest.approx(0, abs=1e-9)
    assert score({"name": "mae"}, [np.array([1.0, 2.0])], [np.array([1.0, np.nan])]) == 0


def test_classes_of_frames_count_where_there_is_one():
    found = [np.eye(3)[[0, 1, 2]], np.eye(3)[[2, 2]]]
    assert score({"name": "accuracy"}, found, [np.array([0, 1, -1]), np.array([2, 0])]) == pytest.approx(3 / 4)
    assert score({"name": "mae"}, [np.array([[1.0], [2.0]])], [np.array([np.nan, 2.5])]) == pytest.approx(0.5)
