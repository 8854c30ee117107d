"""Columns as a few arrays: the same values as the table's own lists, and no Python object for each row."""

import gc
import pickle
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import polars
import pytest

from seqformer import SequenceDataset
from seqformer.data.columns import ValueColumn
from seqformer.data.targets import fit_targets

PAIRS = polars.Array(polars.Float32, 2)
COLUMNS = [
    polars.Series(["ä b", None, "", "xyz"]),
    polars.Series([None, None], dtype=polars.String),
    polars.Series([], dtype=polars.String),
    polars.Series(["b", "a", None, "b"], dtype=polars.Categorical),
    polars.Series(["b", "a"], dtype=polars.Enum(["a", "b", "c"])),
    polars.Series([1, None, 2**40]),
    polars.Series([True, None, False]),
    polars.Series([1.5, None, float("nan")], dtype=polars.Float32),
    polars.Series([None, None]),
    polars.Series([[1, 2], None, [], [3, None]]),
    polars.Series([[]], dtype=polars.List(polars.Int64)),
    polars.Series([[1.0, 2.0], None, [3.0, None]], dtype=PAIRS),
    polars.Series([[[1.0, 2.0], [3.0, 4.0]], [], None, [[5.0, 6.0], None]], dtype=polars.List(PAIRS)),
    polars.Series([[["a"], []], [None], None, []]),
    polars.Series([{"text": "a", "states": [1, 2]}, None, {"text": "b", "states": None}]),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.dtype}-{len(column)}")
def test_values_are_those_of_the_list(column):
    wanted, found = column.to_list(), pickle.loads(pickle.dumps(ValueColumn(column)))
    # repr tells 1 from 1.0 and True, and NaN is NaN
    assert repr(list(found)) == repr([found[index] for index in range(len(column))]) == repr(wanted)
    with pytest.raises(IndexError):
        found[len(column)]


def objects_of(root: object) -> int:
    """Python objects that are reached from one, but through code."""
    seen, left = {id(root)}, [root]
    while left:
        for found in gc.get_referents(left.pop()):
            if id(found) not in seen and not isinstance(found, type | ModuleType | FunctionType | BuiltinFunctionType):
                seen.add(id(found))
                left.append(found)
    return len(seen)


def dataset(rows: int) -> SequenceDataset:
    """Texts, states of frames, another store, a mix by signer: each may hold something for each row."""
    texts = [f"text {'abc'[row % 3]}" for row in range(rows)]
    columns = {"id": [f"row-{row}" for row in range(rows)], "path": "none", "row": np.arange(rows), "frames": 3}
    columns |= {"text": texts, "states": [[0, 1, 2]] * rows, "signer": ["ann", None] * (rows // 2), "score": 0.5}
    table = polars.DataFrame(columns | {"pose_path": "none", "pose_row": np.arange(rows)})
    text = {"kind": "chars", "vocab": 0, "alphabet": None}
    targets, mix = fit_targets(table, ["text", "states", "score"], text, table), [{"name": "mixup", "by": "signer"}]
    return SequenceDataset(table, targets, training=True, inputs=["pose", "score", "states"], mix=mix)


def test_a_dataset_holds_no_object_for_each_row():
    assert objects_of(dataset(2000)) < 120
