"""Targets of every kind of column; empty values are not scored; P3: fitted on one fold, refused on others."""

import json

import numpy as np
import polars
import pytest

from seqformer import Example, InputError, Targets, collate
from seqformer.data.targets import Classes, Units, Values, fingerprint, fit_targets

TEXT = {"kind": "chars", "vocab": 0, "alphabet": None}


def fit(values, text: dict | None = None, rows: list[int] | None = None, dtype=None) -> Targets:
    """Targets of one column ``y``, fitted on some of its rows."""
    known = polars.DataFrame({"id": [f"r{row}" for row in range(len(values))], "y": polars.Series(values, dtype=dtype)})
    return fit_targets(known if rows is None else known[rows], ["y"], text, known)


@pytest.mark.parametrize(
    "values, dtype, classes",
    [
        (["b", "a", "b", None], None, ["a", "b"]),
        (["b", "a", "b", None], polars.Categorical, ["a", "b"]),
        (["b", "a", "b", None], polars.Enum(["c", "b", "a"]), ["c", "b", "a"]),
        ([10, 9, 10, None], polars.Int16, ["9", "10"]),
        ([3, 0, 3, None], polars.UInt8, ["0", "3"]),
        ([True, False, True, None], None, ["false", "true"]),
        (["x2", "10", "9", "-1", "²", "--1"], None, ["-1", "9", "10", "--1", "x2", "²"]),
        (["1", "01", "1", "001"], None, ["001", "01", "1"]),
    ],
)
@pytest.mark.parametrize("text", [None, TEXT])
def test_labels_of_every_type(values, dtype, classes, text):
    if text is not None and not (isinstance(dtype, polars.Enum) or dtype == polars.Categorical):
        return
    if text is not None:  # a run with texts and labels: a categorical column stays one of classes
        known = polars.DataFrame({"id": list("abcd"), "t": ["u"] * 4, "y": polars.Series(values, dtype=dtype)})
        targets = fit_targets(known, ["t", "y"], text, known)
    else:
        targets = fit(values, dtype=dtype)
    encoder = targets.encoders["y"]
    assert isinstance(encoder, Classes) and encoder.classes == classes
    assert (encoder.size, encoder.axes) == (len(classes), "")
    for value in polars.Series(values, dtype=dtype).to_list():
        number = -1 if value is None else classes.index(str(value).lower() if isinstance(value, bool) else str(value))
        assert encoder.encode(value).shape == () and int(encoder.encode(value)) == encoder.truth(value) == number


def test_class_names_come_from_all_rows_and_others_are_refused():
    encoder = fit(["yes", "no", "maybe"], rows=[0, 1]).encoders["y"]
    assert encoder.classes == ["maybe", "no", "yes"]
    with pytest.raises(InputError, match=r"unknown class 'Yes'; did you mean 'yes'?"):
        encoder.encode("Yes")


@pytest.mark.parametrize("dtype", [polars.Float32, polars.Float64, polars.Decimal(10, 2)])
def test_numbers_are_values(dtype):
    encoder = fit([1.5, -2.0, None], dtype=dtype).encoders["y"]
    assert isinstance(encoder, Values) and (encoder.size, encoder.axes, encoder.whole) == (1, "", False)
    values = polars.Series([1.5, -2.0, None], dtype=dtype).to_list()
    np.testing.assert_array_equal([encoder.encode(value) for value in values], np.float32([1.5, -2, np.nan]))


def test_texts_are_units():
    encoder = fit(["abc", "cab", "b d"], TEXT, rows=[0, 1]).encoders["y"]
    assert isinstance(encoder, Units) and encoder.size == 4  # no space and no d: they occur in no training row
    assert encoder.encode("b d").tolist() == [2] and encoder.truth("b d") == "b d"
    assert encoder.decode([3, 1, 2]) == "cab"


@pytest.mark.parametrize("dtype", [polars.List(polars.Int8), polars.List(polars.UInt32), polars.List(polars.Int64)])
def test_class_per_frame(dtype):
    encoder = fit([None, [0, 4, None], [], [2]], dtype=dtype).encoders["y"]
    assert (encoder.size, encoder.axes, encoder.whole) == (5, "T", True)
    encoded = [encoder.encode(value) for value in ([0, 4, None], [], None)]
    assert all(array.dtype == np.int64 for array in encoded)
    assert [array.tolist() for array in encoded] == [[0, 4, -1], [], []]


def test_value_and_values_per_frame():
    one = fit([None, [0.5, None, 2.0]]).encoders["y"]
    assert (one.size, one.axes, one.whole) == (1, "T", False)
    np.testing.assert_array_equal(one.encode([0.5, None, 2.0]), np.float32([0.5, np.nan, 2]))
    for values in (
        polars.Series([None, [], [[1.0, 2.0], None, [3.0, None]]], dtype=polars.List(polars.List(polars.Float32))),
        polars.Series([None, [], [[1.0, 2.0], None, [3.0, None]]], dtype=polars.List(polars.Array(polars.Float64, 2))),
    ):
        several = fit(values).encoders["y"]
        assert (several.size, several.axes, several.whole) == (2, "T", False)
        wanted = np.float32([[1, 2], [np.nan, np.nan], [3, np.nan]])
        np.testing.assert_array_equal(several.encode(values.to_list()[2]), wanted)
        assert several.encode(None).shape == several.encode([]).shape == (0, 2)
    width_1 = fit([[[1.0], None]]).encoders["y"]
    np.testing.assert_array_equal(width_1.encode([[1.0], None]), np.float32([[1], [np.nan]]))


def test_rows_without_a_list_are_not_scored_in_a_batch():
    targets = fit([[0, 1, 2], None, [1]])
    examples = []
    for frames, value in ((3, [0, 1, 2]), (2, None), (1, [1])):
        encoded, axes = targets.encode({"y": value})
        examples.append(Example(str(frames), {"x": np.zeros((frames, 2))}, frames, encoded, axes=axes))
    batch = collate(examples)
    assert batch.targets["y"].tolist() == [[0, 1, 2], [-1, -1, -1], [1, -1, -1]]


@pytest.mark.parametrize(
    "values, dtype, text, message",
    [
        (["a", None, "b"], None, TEXT, "column 'y' is empty for r1"),
        ([None, None], polars.String, TEXT, "column 'y' is empty in every row"),
        ([None, None], None, None, "column 'y' is empty in every row"),
        ([12, 345], None, TEXT, "the config has a text section, but no target holds text: 'y' (Int64)"),
        ([{"a": 1}], None, None, "column 'y' holds Struct({'a': Int64}); a target is"),
        ([b"x"], None, None, "column 'y' holds Binary; a target is"),
        ([["a"], ["b"]], None, None, "column 'y' holds List(String); expected numbers"),
        ([[{"a": 1}]], None, None, "expected numbers"),
        ([[0, 1], [2, -100]], None, None, "expected class numbers from 0 (-1 or empty: not scored): r1"),
        ([[-1, -1], []], polars.List(polars.Int64), None, "expected class numbers from 0"),
        ([[], [None]], polars.List(polars.Int64), None, "expected class numbers from 0"),
        ([[[1.0, 2.0]], [[1.0, 2.0], [3.0]]], None, None, "same number of values in every frame, found 2; fewer in r1"),
    ],
)
def test_unfit_columns_are_one_line(values, dtype, text, message):
    with pytest.raises(InputError) as caught:
        fit(values, text, dtype=dtype)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_text_is_found_before_training_in_validation_rows_too():
    with pytest.raises(InputError, match=r"column 'y' is empty for r2"):
        fit(["a", "b", None], TEXT, rows=[0, 1])


def test_unknown_column():
    table = polars.DataFrame({"id": ["a"], "label": ["x"]})
    with pytest.raises(InputError, match=r"target 'labels' is no column of the manifest; did you mean 'label'?"):
        fit_targets(table, ["labels"], None, table)


def test_refused_on_other_rows():
    rng = np.random.default_rng(0)
    known = polars.DataFrame({"id": [f"r{row}" for row in range(50)], "y": list("abcde") * 10})
    train = known[:40]
    targets = fit_targets(train, ["y"], TEXT, known)
    targets.require_fitted_on(train["id"])
    targets.require_fitted_on(rng.permutation(train["id"].to_numpy()).tolist())  # the order is not learned from
    planted = [
        known["id"], known["id"][10:], train["id"][:39], [*train["id"], "r40"], [*train["id"][1:], "r40"],
        [*train["id"], "r0"], [], ["r" + name for name in train["id"]],
    ]  # fmt: skip
    for ids in planted:
        with pytest.raises(InputError, match="fitted on other rows"):
            targets.require_fitted_on(ids)
        with pytest.raises(InputError, match="fitted on other rows"):
            Targets.from_json(targets.to_json()).require_fitted_on(ids)


def test_fingerprint_tells_ids_apart():
    sets = [["a", "b"], ["a\nb"], ["ab"], ["a", "b", ""], ["b"], [], [""], ['a", "b']]
    assert len({fingerprint(ids) for ids in sets}) == len(sets)


def test_json_round_trip_and_damage():
    known = polars.DataFrame(
        {
            "id": ["p", "q"],
            "t": ["ab", "ba"],
            "c": [1, 2],
            "v": [0.5, None],
            "f": [[1, 0], None],
            "m": [[[1.0, 2.0]], []],
        }
    )
    targets = fit_targets(known, ["t", "c", "v", "f", "m"], TEXT, known)
    again = Targets.from_json(targets.to_json())
    assert again.to_json() == targets.to_json() and again.fitted_on == fingerprint(["p", "q"])
    for row in known.to_dicts():
        for first, second in zip(targets.encode(row), again.encode(row), strict=True):
            assert {k: str(v) for k, v in first.items()} == {k: str(v) for k, v in second.items()}
    text, state = targets.to_json(), json.loads(targets.to_json())
    damaged = [text[: len(text) * part // 10] for part in range(10)] + ["[]", "null", "{}", '"x"']
    for path in (["encoders"], ["fitted_on"], ["encoders", "c", "kind"], ["encoders", "t", "tokenizer"]):
        broken = json.loads(text)
        place = broken
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        damaged.append(json.dumps(broken))
    state["encoders"]["c"]["kind"] = "pickle"
    for broken in [*damaged, json.dumps(state)]:
        with pytest.raises(InputError, match=r"^damaged targets: "):
            Targets.from_json(broken)
