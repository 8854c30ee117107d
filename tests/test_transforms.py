"""Every registered transform: one seed decides it, all time axes move alike, nothing is written in place, NaN stays."""

import json
import pickle

import numpy as np
import pytest
from variants import registered

from seqformer import Example, InputError, collate
from seqformer.augment.compose import Augment

FRAMES, POINTS = 40, 12
FINGERS = [[i] for i in range(10)]
AUDIO = ["equalizer", "gain", "noise", "reverb", "speed"]  # see test_augment.py and test_rooms.py
TIME = {
    "resample": {},
    "window_resample": {"low": 0.3, "high": 2.0},
    "time_warp": {"strength": 1.0},
    "shift": {},
    "crop": {},
    "crop_frames": {"frames": 25},
    "frame_drop": {"share": 0.3},
    "reverse": {},
}
VALUES = {
    "time_mask": {},
    "magnitude_warp": {},
    "jitter": {"relative": True},
    "scale": {},
    "offset": {"per_channel": True},
    "feature_mask": {"high": 0.9, "low": 0.4},
    "channel_drop": {"groups": [[0], [1, 2]], "p_each": 0.5},
    "rotate": {"triples": [[2, 1, 0]]},
    "swap_channels": {"permutation": [1, 0, 2], "signs": [1, -1, 1]},
    "affine": {"dims": 3, "tilt_degrees": 20.0},
    "flip": {"pairs": [[0, 1], [4, 2]]},
    "part_drop": {"parts": {"left": "0:3", "right": [3, 7], "rest": "8:12"}},
    "finger_drop": {"fingers": FINGERS},
    "space_mask": {"low": 0.3, "high": 0.6},
    "cut_out": {},
}
ALL = TIME | VALUES | {"one_of": {"transforms": [{"name": "crop"}, {"name": "jitter"}]}}
FIXED = {"reverse", "swap_channels", "flip"}  # nothing is drawn but whether


def example(frames: int = FRAMES, missing: bool = True, dtype=np.float32) -> Example:
    """x is random, everything else the number of its frame; writing into any of it is an error."""
    rng, time = np.random.default_rng(frames), np.arange(frames)
    x = rng.standard_normal((frames, POINTS, 3)).astype(dtype)
    if missing and frames > 12:
        x[10:12, 3] = np.nan
    inputs = {"x": x, "clock": time.astype(np.float32), "token": time, "pair": (time[:, None] + 100 * time) * 1.0}
    targets = {
        "value": np.stack([time, -time], 1) * 1.0,
        "text": np.arange(5),
        "label": np.asarray(2),
        "none": time[:0],
    }
    for array in (*inputs.values(), *targets.values()):
        array.flags.writeable = False
    return Example("a", inputs, frames, targets, axes={"pair": "TT", "text": "U", "label": ""})


def part(name: str, **settings) -> dict:
    return {"name": name, "p": 1.0} | ALL[name] | settings


def arrays(found: Example) -> dict[str, np.ndarray]:
    return {**found.inputs, **found.targets}


def test_every_registered_transform_has_a_case():
    assert sorted([*ALL, *AUDIO]) == registered("augment")


@pytest.mark.parametrize("name", ALL)
def test_a_seed_and_the_parts_as_json_decide_all(name):
    augment = Augment([part(name)])
    others = [Augment(json.loads(json.dumps(augment.parts))), pickle.loads(pickle.dumps(augment))]
    drawn = set()
    for seed in range(12):
        found = arrays(augment(example(), seed))
        drawn.add(found["x"].tobytes())
        for other in others:
            for key, array in arrays(other(example(), seed)).items():
                np.testing.assert_array_equal(array, found[key])
    assert len(drawn) == 1 if name in FIXED else len(drawn) >= 3


@pytest.mark.parametrize("name", ALL)
def test_all_fields_move_alike(name):
    """The clock of a frame is its number: tokens, pairs and targets must tell the same time after any transform."""
    augment = Augment([part(name)])
    for seed, frames in enumerate((FRAMES, 1, 2, 7, 13, FRAMES)):
        given = example(frames)
        found = augment(given, seed)
        clock, inputs, targets = found.inputs["clock"], found.inputs, found.targets
        assert found.frames == len(clock) == len(inputs["x"]) > 0 and clock.min() >= 0 and clock.max() <= frames - 1
        np.testing.assert_allclose(inputs["pair"], clock[:, None] + 100 * clock, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(targets["value"], np.stack([clock, -clock], 1), atol=1e-4)
        assert (np.abs(inputs["token"] - clock) <= 0.5 + 1e-4).all()
        np.testing.assert_array_equal(targets["text"], np.arange(5)[:: -1 if name == "reverse" else 1])
        assert targets["label"] == 2 and targets["none"].shape == (0,)
        batch = collate([found, given])
        assert batch.mask.sum(1).tolist() == [found.frames, frames] and batch.inputs["x"].dtype.is_floating_point
        if name in TIME and (clock == clock.round()).all():
            np.testing.assert_array_equal(inputs["x"], given.inputs["x"][clock.astype(int)])


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_become_float32_and_what_is_missing_stays_missing(name, dtype):
    given = example(dtype=dtype)
    found = Augment([part(name)])(given, 3).inputs["x"]
    assert found.dtype == np.float32 and found.shape == given.inputs["x"].shape
    missing = np.isnan(given.inputs["x"])
    if name == "flip":  # 3 has no partner
        assert np.isnan(found[10:12, 3]).all()
    hidden = ("time_mask", "feature_mask", "channel_drop")  # 0 is put there by default
    assert name in hidden or np.isnan(found[missing]).all()
    with pytest.raises(InputError, match="row a: x holds int64; only frames can be moved"):
        whole = np.zeros((4, POINTS, 3), np.int64)
        Augment([part(name)])(Example("a", {"x": whole}, 4), 0)


@pytest.mark.parametrize("name", TIME)
def test_frames_between_others_are_interpolated(name):
    """x is a straight line here, so it stays the clock's; with a missing frame, only its neighbours may be missing."""
    time = np.arange(FRAMES, dtype=np.float32)
    gap = np.where(time == 20, np.nan, time)[:, None]
    for seed in range(5):
        found = Augment([part(name)])(Example("a", {"x": gap, "clock": time, "full": time[:, None]}, FRAMES), seed)
        clock, x = found.inputs["clock"], found.inputs["x"][:, 0]
        np.testing.assert_allclose(found.inputs["full"][:, 0], clock, atol=1e-4)
        assert (np.isnan(x) == (np.rint(clock) == 20)).all()
        assert np.abs(x - clock)[~np.isnan(x)].max() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", ALL)
def test_an_example_without_frames_stays_as_it_is(name):
    empty = example(0)
    assert Augment([part(name)])(empty, 0) is empty


def test_time_goes_where_the_settings_say():
    def clocks(name, **settings):
        augment = Augment([part(name, **settings)])
        return [augment(example(), seed).inputs["clock"] for seed in range(60)]

    lengths = [len(clock) for clock in clocks("resample", low=0.5, high=2.0)]
    assert 20 <= min(lengths) < 23 and 75 < max(lengths) <= 80
    assert all(clock[0] == 0 and clock[-1] == 39 for clock in clocks("resample"))
    warped = clocks("time_warp")
    assert all(len(clock) == 40 and clock[0] == 0 and abs(clock[-1] - 39) < 1e-4 for clock in warped)
    assert all((np.diff(clock) > 0).all() for clock in warped) and max(np.ptp(np.diff(clock)) for clock in warped) > 0.3
    starts = {int(40 - len(clock)) for clock in clocks("shift", frames=3)}
    assert starts == {-3, -2, -1, 0, 1, 2, 3} and all(clock[-1] == 39 for clock in clocks("shift"))
    cropped = clocks("crop", low=0.25, high=0.5)
    assert all((np.diff(clock) == 1).all() and 10 <= len(clock) <= 20 for clock in cropped)
    assert {len(clock) for clock in clocks("crop_frames", frames=30)} == {30}
    assert {clock[0] for clock in clocks("crop_frames", frames=38)} == {0, 1, 2}
    kept = np.mean([len(clock) for clock in clocks("frame_drop", share=0.3)]) / 40
    assert abs(kept - 0.7) < 0.03 and {len(clock) for clock in clocks("frame_drop", share=1.0)} == {1}
    for clock in clocks("window_resample", low=2.0, high=2.0, window_low=0.5, window_high=0.5):
        slow = np.diff(clock) < 0.9
        assert len(clock) == 60 and slow.sum() == 39 and np.ptp(np.flatnonzero(slow)) == 38


@pytest.mark.parametrize("value", ["zero", "nan", "mean"])
def test_masks_hide_as_much_as_they_say(value):
    given = example(missing=False).inputs["x"] + 5
    filler = {"zero": 0 * given[0], "nan": np.nan * given[0], "mean": np.nanmean(given, axis=0)}[value]

    def hidden(name, **settings):
        x = Augment([part(name, value=value, **settings)])(Example("a", {"x": given}, FRAMES), 1).inputs["x"]
        there = x == given
        np.testing.assert_allclose(x[~there], np.broadcast_to(filler, x.shape)[~there], rtol=1e-5)
        return ~there

    assert hidden("time_mask", low=0.25, high=0.25).all((1, 2)).sum() == 10
    assert hidden("feature_mask", low=0.34, high=0.34).all((0, 1)).sum() == 1
    assert hidden("channel_drop", p_each=1.0, groups=None).all((0, 1)).sum() == 2  # one stays
    assert hidden("space_mask", low=0.25, high=0.25).all((0, 2)).sum() == 3
    assert hidden("part_drop", low=3, high=3).all((0, 2)).tolist() == [True] * 4 + [False] * 3 + [True] * 5


def test_fingers_are_dropped_without_replacement():
    """As many different fingers as asked for, in windows of the share asked for."""
    given, counts = np.ones((100, POINTS, 3), np.float32), set()
    augment = Augment([part("finger_drop", low=2, high=6, windows_low=2, windows_high=3)])
    for seed in range(200):
        hidden = np.isnan(augment(Example("a", {"x": given}, 100), seed).inputs["x"])
        fingers, frames = hidden.any((0, 2)), hidden.any((1, 2))
        assert not fingers[10:].any() and hidden.sum() == 3 * fingers.sum() * frames.sum()
        assert 25 <= frames.sum() <= 100 and 1 <= (np.diff(np.r_[0, frames]) == 1).sum() <= 3
        counts.add(int(fingers.sum()))
    assert counts == {2, 3, 4, 5, 6}


def test_flip_and_swap_twice_are_nothing_and_do_what_they_say():
    x = example().inputs["x"]
    for name, settings in (
        ("flip", {}),
        ("flip", {"center": 0.5, "axis": 1}),
        ("swap_channels", {"signs": [1, 1, -1]}),
    ):
        once = Augment([part(name, **settings)])(example(), 0)
        np.testing.assert_allclose(Augment([part(name, **settings)])(once, 0).inputs["x"], x, atol=1e-5)
    flipped = Augment([part("flip", center=0.5)])(example(), 0).inputs["x"]
    np.testing.assert_allclose(flipped[:, [0, 1, 4, 2, 3], 0], 1 - x[:, [1, 0, 2, 4, 3], 0], atol=1e-6)
    np.testing.assert_array_equal(flipped[:, [0, 4], 1:], x[:, [1, 2], 1:])


def test_rotations_keep_lengths_and_an_affine_map_is_one():
    given = example()
    x, turned = given.inputs["x"], Augment([part("rotate")])(given, 0).inputs["x"]
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    still = {"scale": [1.0, 1.0], "shear": 0.0, "shift": 0.0}
    moved = Augment([part("affine", **still)])(given, 0).inputs["x"]
    middle = np.nanmean(x, axis=(0, 1))
    np.testing.assert_allclose(np.linalg.norm(moved - middle, axis=-1), np.linalg.norm(x - middle, axis=-1), rtol=1e-4)
    found = Augment([part("affine", dims=2, tilt_degrees=0.0)])(given, 0).inputs["x"]
    np.testing.assert_array_equal(found[..., 2], x[..., 2])
    there = ~np.isnan(x[..., 0])
    design = np.c_[x[there][:, :2], np.ones(there.sum())]
    solved, *_ = np.linalg.lstsq(design, found[there][:, :2], rcond=None)
    np.testing.assert_allclose(design @ solved, found[there][:, :2], atol=1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "resample", "low": 2.0, "high": 1.0}, "from 2.0 to 1.0: expected two numbers in order"),
        ({"name": "crop", "high": 1.5}, "0 to 1"),
        ({"name": "time_mask", "value": "nil"}, "expected one of 'zero', 'nan', 'mean'"),
        ({"name": "time_warp", "knots": 1}, "a curve needs 2 or more"),
        ({"name": "flip", "pairs": [[0, 1], [1, 2]]}, "pairs name a point twice"),
        ({"name": "part_drop", "parts": {"hand": "0-20"}}, "expected points such as '0:21'"),
        ({"name": "part_drop", "parts": {"hand": [0]}, "high": 2}, "from 1 to 2"),
        ({"name": "swap_channels", "permutation": [0, 2]}, "every channel from 0 to 1 once"),
        ({"name": "affine", "tilt_degrees": 5.0}, "tilt_degrees needs dims 3"),
        ({"p": 1.0}, "expected a name"),
    ],
)
def test_useless_settings_are_one_line(given, message):
    with pytest.raises(InputError) as caught:
        Augment([given])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "flip", "pairs": [[0, 12]]}, "row a: point 12 is wanted, but x has 12 points"),
        ({"name": "rotate", "triples": [[1, 2, 3]]}, "row a: channel 3 is wanted, but x has 3 channels"),
        ({"name": "affine", "dims": 3, "tilt_degrees": 1.0}, "expected landmarks (frames, points, 3 or more"),
    ],
)
def test_an_input_that_does_not_suit_names_its_row(given, message):
    x = np.zeros((4, POINTS, 2 if given["name"] == "affine" else 3), np.float32)
    with pytest.raises(InputError) as caught:
        Augment([given | {"p": 1.0}])(Example("a", {"x": x}, 4), 0)
    assert message in str(caught.value)
