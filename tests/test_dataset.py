"""Examples are a pure function of (seed, epoch, index), in any order, process and number of workers."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
from torch.utils.data import DataLoader

from competitions.fsdd.plugin import JoinedDigits
from seqformer import (
    Example,
    InputError,
    RowReader,
    SequenceDataset,
    StoreWriter,
    collate,
    draw_seed,
    read_manifest,
    write_manifest,
)
from seqformer.augment.compose import Augment
from seqformer.data.dataset import VALID
from seqformer.data.targets import fit_targets

RATE, WORDS = 8_000, ("zero", "one", "two")
TEXT = {"kind": "words", "vocab": 0, "alphabet": None}


def clip(name: str) -> np.ndarray:
    """Samples that tell their id: a level of its own, never 0, so that silence shows."""
    rng = np.random.default_rng(list(name.encode()))
    return np.full(rng.integers(200, 900), rng.integers(100, 20_000)).astype(np.int16)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> polars.DataFrame:
    """Four recordings of three digits by two speakers."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    with StoreWriter(folder / "audio", "int16") as store:
        for speaker in ("ann", "bob"):
            for digit, word in enumerate(WORDS):
                for index in range(4):
                    name = f"{digit}_{speaker}_{index}"
                    place = {"id": name, "path": "audio", "row": store.add(clip(name)), "frames": len(clip(name))}
                    rows.append(place | {"rate": RATE, "text": word, "label": str(digit), "speaker": speaker})
    write_manifest(rows, folder / "manifest.parquet")
    return read_manifest(folder / "manifest.parquet")


def features(folder: Path, dtype: str = "float16") -> polars.DataFrame:
    with StoreWriter(folder / "features", dtype) as store:
        for frames in (3, 5):
            store.add(np.arange(frames * 2).reshape(frames, 2))
    columns = {"id": ["a", "b"], "path": ["features"] * 2, "row": [0, 1], "frames": [3, 5], "weight": [1.0, 0.25]}
    write_manifest(polars.DataFrame(columns), folder / "manifest.parquet")
    return read_manifest(folder / "manifest.parquet")


def shift(example: Example, seed: int) -> Example:
    """An augmentation that gives its seed away."""
    x = np.append(example.inputs["x"], np.float32(seed))
    return replace(example, inputs={"x": x}, frames=len(x))


def test_audio_is_scaled_and_resampled_to_the_planned_length(clips):
    reader = RowReader(clips)
    for index, name in enumerate(clips["id"]):
        assert reader[index].dtype == np.float32
        np.testing.assert_array_equal(reader[index], clip(name) / np.float32(32768))
    np.testing.assert_array_equal(reader.frames(), clips["frames"])
    for rate in (8_000, 11_025, 16_000, 44_100, 6_000, 8_001):
        reader = RowReader(clips, rate)
        assert reader.frames().tolist() == [len(reader[index]) for index in range(len(reader))]


def test_planned_lengths_are_whole_number_arithmetic():
    # 24000 / 44100 is no binary fraction: in floats these lengths came out one too long.
    frames = np.arange(1, 3000) * 147
    table = polars.DataFrame({"id": [str(f) for f in frames], "path": "p", "frames": frames, "rate": 44_100})
    np.testing.assert_array_equal(RowReader(table, 24_000).frames(), frames // 147 * 80)
    small = polars.DataFrame(
        {"id": ["a"], "path": "p", "frames": [100], "rate": [100]},
        schema_overrides={"frames": polars.Int8, "rate": polars.Int8},
    )
    assert RowReader(small, 16_000).frames().tolist() == [16_000]


def test_float16_stays_half_until_collate(tmp_path):
    data = SequenceDataset(features(tmp_path))
    first, second = data[0, 0], data[0, 1]
    assert first.inputs["x"].dtype == second.inputs["x"].dtype == np.float16
    batch = collate([first, second])
    assert str(batch.inputs["x"].dtype) == "torch.float32" and batch.weight.tolist() == [1.0, 0.25]
    assert batch.inputs["x"][1].flatten().tolist() == list(range(10)) and data.rate is None


def test_a_store_that_differs_from_the_manifest_is_named(tmp_path):
    table = features(tmp_path)
    other = table.with_columns(frames=polars.Series([3, 4]))
    with pytest.raises(InputError, match=r"row b: .*features holds 5 frames, the manifest says 4"):
        SequenceDataset(other)[0, 1]
    with pytest.raises(InputError, match=r"row b: store .*features: row 7 of 2"):
        SequenceDataset(table.with_columns(row=polars.Series([0, 7])))[0, 1]
    with pytest.raises(InputError, match="audio is wanted at 16000 Hz, but the manifest has no column 'rate'"):
        SequenceDataset(table, rate=16_000)


def test_targets_that_cannot_be_made_are_named(clips):
    targets = fit_targets(clips, ["label"], None, clips)
    with pytest.raises(InputError, match=r"row 0_ann_0: unknown class 'nine'"):
        SequenceDataset(clips.with_columns(label=polars.lit("nine")), targets)[0, 0]
    with pytest.raises(InputError, match=r"the rows have no column 'label'"):
        SequenceDataset(clips.drop("label"), targets)
    assert SequenceDataset(clips, targets)[0, 5].targets["label"] == 1


def test_seeds_differ_in_every_part():
    seeds = {draw_seed(*key) for key in np.ndindex(10, 10, 100)} | {draw_seed(1, VALID, 3), draw_seed(1, 2)}
    assert len(seeds) == 10_002 and all(0 <= seed < 2**32 for seed in seeds)
    assert draw_seed(3, VALID, 4) == draw_seed(3, VALID, 4)


def test_an_example_is_a_function_of_seed_epoch_and_index(clips):
    data = SequenceDataset(clips, seed=5, augment=shift)
    keys = [(epoch, index) for epoch in (0, 1, 7) for index in range(4)]
    wanted = {key: data[key].inputs["x"] for key in keys}
    other = SequenceDataset(clips, seed=5, augment=shift)
    for key in np.random.default_rng(0).permutation(keys).tolist() + keys:
        np.testing.assert_array_equal(other[tuple(key)].inputs["x"], wanted[tuple(key)])
    assert len({x[-1] for x in wanted.values()}) == len(keys)
    assert SequenceDataset(clips, seed=6, augment=shift)[0, 0].inputs["x"][-1] != wanted[0, 0][-1]
    np.testing.assert_array_equal(data[VALID, 2].inputs["x"], clip("0_ann_2") / np.float32(32768))  # not augmented


def test_the_planner_knows_the_speed_of_each_row(clips):
    factors, table = [0.9, 1.0, 1.1, 0.85], polars.concat([clips] * 20)
    data = SequenceDataset(table, seed=5, speed=factors)
    alone = [Augment([{"name": "speed", "factors": [factor]}]) for factor in factors]
    drawn = set()
    for epoch in (0, 1, 30):
        planned = data.frames(epoch)
        for index in range(0, len(data), 7):
            row, found = data[VALID, index], data[epoch, index].inputs["x"]
            assert len(found) == planned[index] and row.frames == table["frames"][index]
            same = [np.array_equal(found, play(row, 0).inputs["x"]) for play in alone]
            assert sum(same) == 1
            drawn.add((index, epoch, same.index(True)))
        counts = np.bincount([choice for _, at, choice in drawn if at == epoch])
        assert counts.min() > 0.5 * counts.mean()
    np.testing.assert_array_equal(data.frames(VALID), table["frames"])
    other = SequenceDataset(table, seed=6, speed=factors)
    assert (other.frames(0) != data.frames(0)).mean() > 0.5 < (data.frames(0) != data.frames(1)).mean()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).frames(1), data.frames(1))
    with pytest.raises(InputError, match=r"dataset\.speed \[0\.0\]: expected factors above 0"):
        SequenceDataset(table, speed=[0.0])


def digits(clips, seed=0, training=True, **changes) -> JoinedDigits:
    return JoinedDigits(
        clips, fit_targets(clips, ["text"], TEXT, clips), RATE, seed, training=training, items=40, **changes
    )


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, of any process with threads
@pytest.mark.parametrize(
    "make", [lambda c, a: SequenceDataset(c, seed=1, augment=a), lambda c, a: digits(c, augment=a)]
)
def test_any_number_of_workers_gives_the_same_batches(clips, make):
    data = make(clips, Augment([{"name": "speed"}, {"name": "gain"}, {"name": "noise"}]))
    data[0, 0]  # the store is open and mapped before the workers begin
    keys = [[(epoch, index) for index in range(start, start + 5)] for epoch in (0, 1) for start in (0, 5, 10)]
    found = {}
    for workers in (0, 1, 2):
        loader = DataLoader(data, batch_sampler=keys, collate_fn=collate, num_workers=workers)
        found[workers] = [
            (batch.ids, batch.inputs["x"].numpy().tobytes(), batch.mask.sum(1).tolist()) for batch in loader
        ]
    assert found[0] == found[1] == found[2]


def test_readers_and_datasets_pickle_without_their_data(clips):
    augment = Augment([{"name": "gain"}])
    for data in (SequenceDataset(clips, seed=1, augment=augment), digits(clips, augment=augment)):
        wanted = data[0, 3].inputs["x"]  # now the store is open
        sent = pickle.dumps(data)
        assert len(sent) < 20_000
        np.testing.assert_array_equal(pickle.loads(sent)[0, 3].inputs["x"], wanted)
    reader = RowReader(clips)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[1], reader[1])


def split_clips(x: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """The recordings in a joined string, and the lengths of the silences between."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (x != 0).astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    return [x[start:end] for start, end in zip(starts, ends, strict=True)], (starts[1:] - ends[:-1]).tolist()


def spoken(clips, piece: np.ndarray) -> list[tuple[str, str]]:
    """Text and speaker of the recordings that equal a piece."""
    same = [np.array_equal(piece, clip(name) / np.float32(32768)) for name in clips["id"]]
    return clips.filter(polars.Series(same)).select("text", "speaker").rows()


@pytest.mark.parametrize("training", [True, False])
def test_joined_digits_are_what_the_text_says(clips, training):
    data = digits(clips, training=training, strings=10, gap_ms=(20.0, 300.0))
    epochs = (0, 3) if training else (VALID,)
    gaps = []
    for epoch in epochs:
        planned = data.frames(epoch)
        assert len(planned) == len(data) == (40 if training else 20)
        for index in range(len(data)):
            found = data[epoch, index]
            assert len(found.inputs["x"]) == found.frames == planned[index]
            pieces, silences = split_clips(found.inputs["x"])
            gaps += silences
            recordings = [spoken(clips, piece) for piece in pieces]
            assert [r[0][0] for r in recordings] == data.text(epoch, index).split() and 3 <= len(pieces) <= 7
            assert len({r[0][1] for r in recordings}) == 1  # one speaker
            assert data.targets.encoders["text"].decode(found.targets["text"].tolist()) == data.text(epoch, index)
    assert 0.020 * RATE <= min(gaps) < 0.060 * RATE and 0.260 * RATE < max(gaps) <= 0.300 * RATE


def test_joined_digits_are_a_function_of_seed_epoch_and_index(clips):
    def all_of(seed, epoch):
        data = digits(clips, seed)
        return [data[epoch, index].inputs["x"].tobytes() for index in range(len(data))]

    assert all_of(1, 0) == all_of(1, 0)
    assert len({*all_of(1, 0), *all_of(1, 1), *all_of(2, 0)}) == 120


def test_validation_strings_are_the_same_for_any_seed(clips):
    first, second = digits(clips, 0, training=False, strings=7), digits(clips, 99, training=False, strings=7)
    assert first.ids.tolist() == second.ids.tolist() == [f"{s}-{n:03d}" for s in ("ann", "bob") for n in range(7)]
    assert first.columns == second.columns and len(set(first.columns["text"])) > 10
    for index in range(14):
        for epoch in (VALID, 0, 5):
            np.testing.assert_array_equal(first[VALID, index].inputs["x"], second[epoch, index].inputs["x"])
        assert first.text(VALID, index) == first.columns["text"][index]
        assert first[VALID, index].id == first.ids[index]


def test_the_ramp_goes_from_short_to_long(clips):
    data = digits(clips, ramp=[[5, 3, 7], [0, 1, 1], [2, 1, 3]])
    counts = {epoch: {len(data.text(epoch, index).split()) for index in range(40)} for epoch in (0, 1, 2, 4, 5, 50)}
    assert counts[0] == counts[1] == {1} and counts[2] == counts[4] == {1, 2, 3}
    assert counts[5] == counts[50] == {3, 4, 5, 6, 7}
    held_out = digits(clips, training=False, strings=20, ramp=[[0, 1, 1]])
    assert {len(text.split()) for text in held_out.columns["text"]} <= {3, 4, 5, 6, 7}  # no ramp in validation


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"digits": (0, 3)}, "expected the fewest and the most digits"),
        ({"digits": (4, 3)}, "expected the fewest and the most digits"),
        ({"ramp": [[0, 1, 1], [2, 3, 1]]}, "expected the fewest and the most digits"),
        ({"ramp": [[1, 1, 1]]}, "dataset.ramp begins at epoch 1"),
        ({"gap_ms": (300, 20)}, "expected the shortest and the longest silence"),
        ({"gap_ms": (-1, 20)}, "expected the shortest and the longest silence"),
    ],
)
def test_useless_joined_digits(clips, changes, message):
    with pytest.raises(InputError, match=message):
        digits(clips, **changes)


def test_joined_digits_are_augmented_by_a_seed_of_their_own(clips):
    plain, shifted = digits(clips), digits(clips, augment=shift)
    drawn = []
    for index in range(10):
        x = shifted[2, index].inputs["x"]
        np.testing.assert_array_equal(x[:-1], plain[2, index].inputs["x"])
        drawn.append(x[-1])
    assert len(set(drawn)) == 10
