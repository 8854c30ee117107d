"""Collate pads what is ragged, fills what is not there, and refuses what does not fit, naming the row."""

import numpy as np
import pytest
import torch

from seqformer import Batch, Example, InputError, collate

AXES = {"tokens": "T", "pair": "TT", "static": "", "units": "U", "label": "", "values": "T", "grid": "UT"}


def example(frames: int, units: int = 2, **changes) -> Example:
    """One of everything, filled with the number of frames."""
    inputs = {
        "x": np.full((frames, 3), frames, np.float16),
        "tokens": np.full(frames, frames, np.int32),
        "pair": np.full((frames, frames, 2), frames, np.float64),
        "static": np.full(4, frames, np.float32),
    }
    targets = {
        "units": np.full(units, frames, np.int32),
        "label": np.asarray(frames),
        "values": np.full((frames, 2), frames, np.float16),
        "grid": np.full((units, frames), frames, np.float64),
    }
    fields = {"inputs": inputs, "targets": targets, "weight": frames / 2, "axes": AXES} | changes
    return Example(f"row{frames}", frames=frames, **fields)


def test_every_field_is_padded_along_its_own_axes():
    frames, units = [3, 5, 1], [2, 0, 4]
    batch = collate([example(f, u) for f, u in zip(frames, units, strict=True)])
    assert batch.ids == ["row3", "row5", "row1"] and batch.weight.tolist() == [1.5, 2.5, 0.5]
    assert batch.mask.tolist() == [[True] * f + [False] * (5 - f) for f in frames] and batch.frames == 9
    shapes = {"x": (3, 5, 3), "tokens": (3, 5), "pair": (3, 5, 5, 2), "static": (3, 4)}
    assert {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()} == shapes
    shapes = {"units": (3, 4), "label": (3,), "values": (3, 5, 2), "grid": (3, 4, 5)}
    assert {name: tuple(tensor.shape) for name, tensor in batch.targets.items()} == shapes
    for item, (f, u) in enumerate(zip(frames, units, strict=True)):
        for name, real in (("x", np.s_[:f]), ("tokens", np.s_[:f]), ("pair", np.s_[:f, :f]), ("static", np.s_[:])):
            check(batch.inputs[name][item], real, f, 0)
        check(batch.targets["units"][item], np.s_[:u], f, -1)
        check(batch.targets["values"][item], np.s_[:f], f, float("nan"))
        check(batch.targets["grid"][item], np.s_[:u, :f], f, float("nan"))
        assert batch.targets["label"][item] == f


def check(tensor: torch.Tensor, real, value: float, fill: float) -> None:
    """The real part holds the value, all else the fill."""
    padded = np.full(tensor.shape, fill, dtype=float)
    padded[real] = value
    np.testing.assert_array_equal(tensor.double().numpy(), padded)


@pytest.mark.parametrize(
    "given, kept, target",
    [
        (np.float16, torch.float32, torch.float32),
        (np.float32, torch.float32, torch.float32),
        (np.float64, torch.float32, torch.float32),
        (np.int16, torch.int16, torch.int64),
        (np.int32, torch.int32, torch.int64),
        (np.int64, torch.int64, torch.int64),
        (np.uint8, torch.uint8, torch.int64),
        (np.bool_, torch.bool, torch.int64),
    ],
)
def test_dtypes(given, kept, target):
    rows = [Example(str(f), {"x": np.ones(f, given)}, f, {"y": np.ones(f, given)}) for f in (2, 3)]
    batch = collate(rows)
    assert batch.inputs["x"].dtype == kept and batch.targets["y"].dtype == target
    assert batch.inputs["x"][0].tolist() == [1, 1, 0] and batch.targets["y"][0, :2].tolist() == [1, 1]
    fill = batch.targets["y"][0, 2]
    assert fill.isnan() if target == torch.float32 else fill == -1


def test_a_batch_does_not_share_memory_with_its_rows():
    row = example(3)
    batch = collate([row])
    batch.inputs["x"].zero_()
    assert (row.inputs["x"] == 3).all()


def test_read_only_rows_and_numbers_as_targets():
    x = np.zeros((2, 1), np.float32)
    x.flags.writeable = False  # as rows of a store are
    batch = collate(
        [Example("a", {"x": x}, 2, {"label": 1, "score": 0.5}), Example("b", {"x": x}, 2, {"label": 0, "score": 2})]
    )
    assert batch.targets["label"].tolist() == [1, 0] and batch.targets["score"].tolist() == [0.5, 2.0]


def test_a_target_without_frames_is_not_scored():
    rows = [Example(str(f), {"x": np.ones(f)}, f, {"y": y}) for f, y in ((3, np.zeros((0, 2))), (2, np.ones((2, 2))))]
    targets = collate(rows).targets["y"]
    assert targets.shape == (2, 3, 2) and targets[0].isnan().all() and targets[1, :2].eq(1).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": {"x": np.zeros((4, 3))}}, "row5: 'x' has 4 frames, the example 5"),
        ({"inputs": {"x": np.zeros((5, 2))}}, "row5: 'x' has shape (5, 2), others in the batch (3, 3)"),
        ({"inputs": {"x": np.zeros((5, 3, 1))}}, "row5: 'x' has shape (5, 3, 1), others in the batch (3, 3)"),
        ({"inputs": {"x": np.zeros(5)}}, "row5: 'x' has shape (5,), others in the batch (3, 3)"),
        ({"inputs": {"y": np.zeros((5, 3))}}, "row5 has fields ['y'], row3 ['x']"),
        ({"targets": {"labels": np.zeros(6)}}, "row5: 'labels' has 6 frames, the example 5"),
        ({"targets": {"labels": np.zeros(1)}}, "row5: 'labels' has 1 frames, the example 5"),
        ({"targets": {}}, "row5 has fields [], row3 ['labels']"),
    ],
)
def test_rows_that_do_not_fit_are_named(changes, message):
    def row(frames: int, **fields) -> Example:
        plain = {"inputs": {"x": np.zeros((frames, 3))}, "targets": {"labels": np.zeros(frames)}}
        return Example(f"row{frames}", frames=frames, **(plain | fields))

    with pytest.raises(InputError) as caught:
        collate([row(3), row(5, **changes)])
    assert message == str(caught.value)


def test_a_pair_must_fit_along_both_axes():
    with pytest.raises(InputError, match="row3: 'pair' has 4 frames, the example 3"):
        collate([example(3, inputs={"pair": np.zeros((3, 4))})])


def test_to_and_pin_keep_everything():
    batch = collate([example(2), example(3)])
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch) and moved.ids == batch.ids
    tensors = [moved.mask, moved.weight, *moved.inputs.values(), *moved.targets.values()]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.mask.device.type == "cpu"
    same = batch.to(torch.device("cpu"))
    for name in batch.inputs:
        assert torch.equal(same.inputs[name], batch.inputs[name])
    with pytest.raises(AttributeError):  # frozen
        batch.ids = []
