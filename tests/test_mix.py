"""Mixes of two rows: frames, texts, classes, pairs and weights go the same way, against brute force."""

import pickle

import numpy as np
import polars
import pytest

from seqformer import Example, InputError, SequenceDataset, StoreWriter, collate
from seqformer.augment.compose import Augment
from seqformer.augment.mix import Mixer
from seqformer.data.targets import fit_targets

AXES = {"pair": "TT", "link": "TT", "text": "U", "label": "", "vector": " "}


def example(row: int, frames: int, **changed) -> Example:
    """Every value tells the row (thousands) and the frame it comes from."""
    time = 1000 * row + np.arange(frames, dtype=np.float32)
    pair = time[:, None] + time
    targets = {"value": time[:, None], "text": np.arange(2 * frames) + 1000 * row, "label": np.asarray(row % 3)}
    targets |= {"state": np.arange(frames) % 3, "link": pair} | changed.pop("targets", {})
    inputs = {"x": time[:, None] * np.ones(2, np.float32), "token": time.astype(int), "pair": pair}
    inputs["vector"] = np.full(2, row, np.float32)
    kept = changed.pop("only", {*inputs, *targets})
    inputs, targets = ({key: value for key, value in found.items() if key in kept} for found in (inputs, targets))
    return Example(f"row{row}", inputs, frames, targets, weight=1.0 + row, axes=AXES)


def mixed(part: dict, first: Example, second: Example, seed: int = 0) -> Example:
    """The second row mixed into the first."""
    mixer = Mixer([part], {"id": ["a", "b"]}, {name: 3 for name in ("label", "state") if name in first.targets})
    mixer.entries = [(mix, p, [np.array([1])] * 2) for mix, p, _ in mixer.entries]
    return mixer(lambda index: (first, second)[index], 0, np.random.default_rng(seed))


def blocks(head: np.ndarray, tail: np.ndarray, fill: float) -> np.ndarray:
    whole = np.full((len(head) + len(tail),) * 2, fill, np.float32)
    whole[: len(head), : len(head)], whole[len(head) :, len(head) :] = head, tail
    return whole


def test_cutmix_cuts_everything_at_one_ratio():
    first, second = example(1, 20), example(2, 34)
    ratios = set()
    for seed in range(40):
        ratio = np.random.default_rng(seed)
        ratio.random(), ratio.choice([1])  # whether, and with whom
        ratio = ratio.uniform(0, 1)
        found = mixed({"name": "cutmix"}, first, second, seed)
        stop, start = round(ratio * 20), round(ratio * 34)
        time = np.r_[first.inputs["x"][:stop, 0], second.inputs["x"][start:, 0]]
        ratios.add(stop)
        assert found.frames == stop + 34 - start and found.weight == pytest.approx(ratio * 2 + (1 - ratio) * 3)
        np.testing.assert_array_equal(found.inputs["x"], np.stack([time, time], 1))
        np.testing.assert_array_equal(found.inputs["token"], time)
        np.testing.assert_array_equal(found.targets["value"][:, 0], time)
        text = np.r_[first.targets["text"][: round(ratio * 40)], second.targets["text"][round(ratio * 68) :]]
        np.testing.assert_array_equal(found.targets["text"], text)
        np.testing.assert_allclose(found.targets["label"], [0, ratio, 1 - ratio], atol=1e-6)
        np.testing.assert_array_equal(found.targets["state"], np.eye(3)[np.r_[:stop, start:34] % 3])
        np.testing.assert_allclose(found.inputs["vector"], [2 - ratio] * 2, rtol=1e-6)
        head, tail = first.inputs["pair"][:stop, :stop], second.inputs["pair"][start:, start:]
        np.testing.assert_array_equal(found.inputs["pair"], blocks(head, tail, 0))
        np.testing.assert_array_equal(found.targets["link"], blocks(head, tail, np.nan))
        assert collate([found, found]).mask.sum() == 2 * found.frames
    assert len(ratios) > 12


def test_concatenate_puts_all_of_one_after_all_of_the_other():
    kept = {"x", "token", "pair", "value", "text", "link"}
    first, second = example(1, 5, only=kept), example(2, 9, only=kept)
    found = mixed({"name": "concatenate", "max_frames": 14}, first, second)
    assert found.frames == 14 and found.weight == pytest.approx((5 * 2 + 9 * 3) / 14)
    time = np.r_[1000:1005, 2000:2009]
    np.testing.assert_array_equal(found.inputs["token"], time)
    np.testing.assert_array_equal(found.targets["text"], np.r_[1000:1010, 2000:2018])
    np.testing.assert_array_equal(found.inputs["pair"], blocks(first.inputs["pair"], second.inputs["pair"], 0))
    alone = mixed({"name": "concatenate", "max_frames": 13}, first, second)
    np.testing.assert_array_equal(alone.inputs["token"], first.inputs["token"])
    same = mixed({"name": "concatenate"}, example(1, 5, only={"x", "vector"}), example(1, 9, only={"x", "vector"}))
    np.testing.assert_array_equal(same.inputs["vector"], [1, 1])
    with pytest.raises(InputError, match="rows row1 and row2 cannot be mixed: 'vector' differs and has no mean"):
        mixed({"name": "concatenate"}, example(1, 5), example(2, 9))


def test_mixup_is_the_weighted_mean():
    kept = {"x", "pair", "vector", "value", "label", "state", "link"}
    first, second = example(1, 11, only=kept), example(2, 21, only=kept)
    shares = []
    for seed in range(200):
        found = mixed({"name": "mixup", "alpha": 0.4}, first, second, seed)
        share = float(found.targets["label"][1])
        shares.append(share)
        time = share * (1000 + np.arange(11)) + (1 - share) * (2000 + 2 * np.arange(11))  # 21 frames at the pace of 11
        assert found.frames == 11 and found.weight == pytest.approx(2 * share + 3 * (1 - share), rel=1e-5)
        np.testing.assert_allclose(found.targets["label"], [0, share, 1 - share], atol=1e-6)
        np.testing.assert_allclose(found.inputs["x"][:, 1], time, rtol=1e-5)
        np.testing.assert_allclose(found.targets["link"], time[:, None] + time, rtol=1e-5)
        np.testing.assert_allclose(found.inputs["vector"], [2 - share] * 2, rtol=1e-5)
        np.testing.assert_allclose(found.targets["state"].sum(1), 1, rtol=1e-5)
    assert abs(np.mean(shares) - 0.5) < 0.09 and np.var(shares) == pytest.approx(1 / 4 / 1.8, rel=0.25)  # Beta(.4, .4)
    with pytest.raises(InputError, match="rows row1 and row2 cannot be mixed: mixup cannot average 'text', a text"):
        mixed({"name": "mixup"}, example(1, 5, only={"x", "text"}), example(2, 9, only={"x", "text"}))
    with pytest.raises(InputError, match="'token' differs and has no mean"):
        mixed({"name": "mixup"}, example(1, 5, only={"x", "token"}), example(2, 5, only={"x", "token"}))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_what_is_not_scored_stays_not_scored(name):
    kept = {"x", "label", "state", "value"}
    none = {"label": np.asarray(-1), "state": np.arange(0), "value": np.zeros((0, 1), np.float32)}
    blank, full = example(1, 8, only=kept, targets=none), example(2, 8, only=kept)
    for first, second in ((blank, full), (full, blank)):
        found = mixed({"name": name, **({"low": 0.5, "high": 0.5} if name == "cutmix" else {})}, first, second)
        missing = np.isnan(found.targets["value"][:, 0])
        assert np.isnan(found.targets["label"]).all()
        np.testing.assert_array_equal(np.isnan(found.targets["state"]).all(1), missing)
        wanted = np.arange(8) < 4 if first is blank else np.arange(8) >= 4
        np.testing.assert_array_equal(missing, wanted if name == "cutmix" else np.ones(8, bool))
        assert collate([found]).targets["state"].shape == (1, 8, 3)
    empty = example(3, 0, only=kept)
    assert mixed({"name": name}, full, empty).frames == 8 and mixed({"name": name}, empty, full).frames == 0


@pytest.fixture
def rows(tmp_path):
    """Eight rows of three signers, one of them unknown; x holds the number of the row."""
    with StoreWriter(tmp_path / "store", "float32") as store:
        numbers = [store.add(np.full((10, 1), row, np.float32)) for row in range(8)]
    signer, label = ["a", "b", "a", "b", None, "a", None, "b"], ["x", "y", None, "z", "x", "y", "z", "x"]
    table = polars.DataFrame({"id": [f"r{row}" for row in range(8)], "path": str(tmp_path / "store"), "row": numbers,
                              "frames": 10, "signer": signer, "label": label})  # fmt: skip
    return table, fit_targets(table, ["label"], None, table)


def test_a_dataset_mixes_within_groups_and_by_its_seed_alone(rows):
    table, targets = rows
    part = {"name": "cutmix", "p": 0.8, "by": "signer", "low": 0.3, "high": 0.7}
    data = SequenceDataset(table, targets, seed=3, training=True, mix=[part], augment=Augment([{"name": "reverse"}]))
    again = pickle.loads(pickle.dumps(data))  # as for a spawned worker
    partners = {row: set() for row in range(8)}
    for epoch in range(40):
        for row in np.random.default_rng(epoch).permutation(8).tolist():
            found = data[epoch, row]
            np.testing.assert_array_equal(found.inputs["x"], again[epoch, row].inputs["x"])
            partners[row] |= set(found.inputs["x"][:, 0].astype(int).tolist())
            assert found.targets["label"].shape == (3,) and row in found.inputs["x"][[0, -1], 0]
    same = {0: {0, 2, 5}, 1: {1, 3, 7}, 4: {4}, 6: {6}}
    assert partners == same | {2: same[0], 5: same[0], 3: same[1], 7: same[1]}
    assert np.isnan(data[0, 2].targets["label"]).all()
    assert data[-1, 0].targets["label"] == 0  # validation sees rows as they are, and class numbers


@pytest.mark.parametrize(
    "part, message",
    [
        ({"name": "cutmx"}, "unknown mix 'cutmx'; did you mean 'cutmix'?"),
        ({"p": 0.5}, "expected a name"),
        ({"name": "cutmix", "p": 2}, "mix 'cutmix': p is 2.0; expected a probability, 0 to 1"),
        ({"name": "cutmix", "p": "often"}, "mix 'cutmix'.p: found 'often'"),
        ({"name": "cutmix", "low": 0.9, "high": 0.1}, "expected two numbers in order"),
        ({"name": "mixup", "alpha": 0.0}, "alpha is 0.0; expected a number above 0"),
        ({"name": "mixup", "by": "singer"}, "mix: by names no column 'singer'; did you mean 'signer'?"),
    ],
)
def test_useless_settings_are_one_line(rows, part, message):
    with pytest.raises(InputError) as caught:
        SequenceDataset(*rows, training=True, mix=[part])
    assert message in str(caught.value) and "\n" not in str(caught.value)
