"""One seed decides all of an augmentation, whatever came before; a run without any does not import albumentations."""

import math
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqformer import Example, InputError
from seqformer.augment.compose import Augment

PARTS = [{"name": "speed"}, {"name": "gain"}, {"name": "equalizer"}, {"name": "noise", "p": 0.5}]
PARTS += [{"name": "reverb", "rate": 8_000}, {"name": "noise", "color": "pink"}]
X = np.random.default_rng(0).standard_normal(4_000).astype(np.float32) * 0.1


def change(augment: Augment, x: np.ndarray, seed: int) -> np.ndarray:
    """``x`` of an example that has nothing else, augmented."""
    return augment(Example("x", {"x": x}, len(x)), seed).inputs["x"]


def test_a_seed_decides_all_whatever_came_before():
    augment, other = Augment(PARTS), Augment(PARTS)
    wanted = {seed: change(augment, X, seed) for seed in range(60)}
    for seed in np.random.default_rng(1).permutation(60).tolist():
        change(other, X[: 100 + seed], seed + 1000)  # another example in between
        np.testing.assert_array_equal(change(other, X, seed), wanted[seed])
    assert len({x.tobytes() for x in wanted.values()}) == 60
    assert all(x.dtype == np.float32 and x.ndim == 1 for x in wanted.values())


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_global_random_state_is_read_or_changed(seed):
    augment = Augment(PARTS)
    found = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        before = random.getstate(), np.random.get_state()[1].copy()
        found.append(change(augment, X, seed))
        assert random.getstate() == before[0]
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    np.testing.assert_array_equal(*found)


def test_transforms_draw_independently():
    """Two of a kind in a row draw two values, and what one does says nothing about the next."""
    both = Augment([{"name": "gain", "low_db": -6.0, "high_db": 6.0}, {"name": "gain", "low_db": 0.0, "high_db": 12.0}])
    first = Augment([{"name": "gain", "low_db": -6.0, "high_db": 6.0}])
    one = np.full(1, 0.1, np.float32)
    drawn = [[20 + 20 * math.log10(change(augment, one, seed)[0]) for seed in range(2000)] for augment in (first, both)]
    second = np.array(drawn[1]) - np.array(drawn[0])
    assert -6 <= min(drawn[0]) < -5.9 and 5.9 < max(drawn[0]) <= 6 and second.min() >= 0 and second.max() <= 12.001
    assert abs(np.corrcoef(drawn[0], second)[0, 1]) < 0.06  # 3 standard errors are 0.067


def test_an_augmentation_travels_to_another_process():
    augment = Augment(PARTS)
    sent = pickle.loads(pickle.dumps(augment))
    for seed in range(10):
        np.testing.assert_array_equal(change(sent, X, seed), change(augment, X, seed))


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 1.07, 0.953, 2.0])
@pytest.mark.parametrize("frames", [1, 7, 4_000])
def test_speed_changes_the_length_as_stated(factor, frames):
    found = change(Augment([{"name": "speed", "factors": [factor]}]), X[:frames], 0)
    assert len(found) == -(-frames * 1000 // round(factor * 1000)) and found.dtype == np.float32


def test_speed_moves_a_tone_as_it_should():
    time = np.arange(8_000) / 8_000
    tone = np.sin(2 * np.pi * 400 * time).astype(np.float32)
    found = change(Augment([{"name": "speed", "factors": [1.1]}]), tone, 0)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found)), 8_000))
    assert spectrum.argmax() == 440  # Hz
    drawn = {len(change(Augment([{"name": "speed"}]), X, seed)) for seed in range(30)}
    assert drawn == {4445, 4000, 3637}


@pytest.mark.parametrize("color", ["white", "pink"])
def test_noise_has_the_stated_level(color):
    augment = Augment([{"name": "noise", "low_snr_db": 10.0, "high_snr_db": 10.0, "color": color, "p": 1.0}])
    found = change(augment, X, 3) - X
    assert 10 * math.log10(np.mean(X**2) / np.mean(found**2)) == pytest.approx(10, abs=1e-3)
    assert not change(augment, np.zeros(10, np.float32), 3).any()  # silence stays silent
    applied = [not np.array_equal(change(Augment([{"name": "noise", "p": 0.3}]), X, seed), X) for seed in range(300)]
    assert 60 < sum(applied) < 120


def test_rows_of_a_store_are_not_written_to():
    x = X.copy()
    x.flags.writeable = False
    for part in PARTS:
        change(Augment([part | {"p": 1.0}]), x, 0)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"name": "sped"}, "unknown augment 'sped'; did you mean 'speed'?"),
        ({"name": "speed", "factor": 1.0}, "speed has no argument 'factor'; did you mean 'factors'?"),
        ({"name": "speed", "factors": []}, "expected some numbers above 0"),
        ({"name": "speed", "factors": [1.0, -1.0]}, "expected some numbers above 0"),
        ({"name": "gain", "p": 1.5}, "augment 'gain': p is 1.5; expected a probability, 0 to 1"),
        ({"name": "gain", "low_db": "loud"}, "low_db: found 'loud'"),
    ],
)
def test_useless_settings_are_one_line(part, message):
    with pytest.raises(InputError) as caught:
        Augment([part])
    assert message in str(caught.value) and "\n" not in str(caught.value)


ISOLATED = """
import socket, sys
import numpy as np
class Forbidden(socket.socket):
    def __init__(self, *_, **__):
        raise SystemExit("the network was asked for")
socket.socket = Forbidden
socket.create_connection = socket.getaddrinfo = lambda *_, **__: sys.exit("the network was asked for")
import seqformer
heavy = {"albumentations", "polars", "sklearn", "scipy", "soundfile", "omegaconf", "sentencepiece", "rapidfuzz"}
print(sorted(heavy & set(sys.modules)))
import seqformer.cli, seqformer.predict, seqformer.train.crossval
from seqformer import SequenceDataset, StoreWriter, write_manifest, read_manifest, collate
with StoreWriter(sys.argv[1] + "/store", "int16") as store:
    row = store.add(np.arange(100))
write_manifest([{"id": "a", "path": "store", "row": row, "frames": 100, "rate": 8000}], sys.argv[1] + "/m.parquet")
table = read_manifest(sys.argv[1] + "/m.parquet")
collate([SequenceDataset(table, rate=16000)[0, 0]])
print("albumentations" in sys.modules)
augmented = SequenceDataset(table, augment=seqformer.augment.compose.Augment([{"name": "speed"}, {"name": "noise"}]))
collate([augmented[0, 0]])
print("albumentations" in sys.modules)
"""


def test_nothing_heavy_is_imported_before_its_use_and_nothing_asks_the_network(tmp_path):
    command, root = [sys.executable, "-W", "error", "-c", ISOLATED, tmp_path], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "False", "True"]
