"""A manifest is read whole or refused in one line that names the row and the file."""

import os
from pathlib import Path

import numpy as np
import polars
import pytest
import soundfile

from seqformer import InputError, StoreWriter, read_manifest, write_manifest
from seqformer.data import manifest as manifest_module
from seqformer.data.manifest import check_manifest, manifest_hash, select_rows


@pytest.fixture
def folder(tmp_path) -> Path:
    """A store of three rows of 3, 5 and 4 frames, and an audio file of 800 samples."""
    with StoreWriter(tmp_path / "features") as store:
        for frames in (3, 5, 4):
            store.add(np.full((frames, 2), frames, np.float32))
    soundfile.write(tmp_path / "speech.wav", np.zeros(800), 8_000)
    return tmp_path


def table(**changes) -> polars.DataFrame:
    columns = {
        "id": ["a", "b", "c"],
        "path": ["features"] * 3,
        "row": [0, 1, 2],
        "frames": [3, 5, 4],
        "rate": [50, 50, 50],
        "weight": [1.0, 0.5, 0.0],
        "label": ["x", "y", None],
    }
    return polars.DataFrame({name: values for name, values in (columns | changes).items() if values is not None})


def test_round_trip_and_absolute_paths(folder, monkeypatch):
    write_manifest(table(), folder / "manifest.parquet")
    monkeypatch.chdir(folder)
    for path in ("manifest.parquet", folder / "manifest.parquet"):
        found = read_manifest(path)
        assert found["path"].to_list() == [str(folder / "features")] * 3
        assert found.drop("path").equals(table().drop("path"))
    assert len(manifest_hash(folder / "manifest.parquet")) == 64


def test_rows_as_dicts_and_parents_are_made(folder):
    rows = [{"id": "a", "path": str(folder / "features"), "row": 1, "frames": 5, "label": 3}]
    write_manifest(rows, folder / "new" / "deep" / "manifest.parquet")
    assert read_manifest(folder / "new" / "deep" / "manifest.parquet").to_dicts() == rows


def test_files_and_store_rows_mix(folder):
    mixed = table(id=["a", "b", "c"], path=["features", "speech.wav", "features"], row=[0, None, 2], frames=[3, 800, 4])
    write_manifest(mixed, folder / "manifest.parquet")
    assert read_manifest(folder / "manifest.parquet")["row"].to_list() == [0, None, 2]
    files = polars.DataFrame({"id": ["a"], "path": ["speech.wav"], "row": [None], "frames": [800]})
    check_manifest(files, folder / "m.parquet")  # a column of nothing but empty rows has no type


FAULTS = {
    "no id": ({"id": None}, "column 'id' is missing; found path, row, frames"),
    "id of numbers": ({"id": [1, 2, 3]}, "column 'id' holds Int64; expected text"),
    "empty id": ({"id": ["a", None, "c"]}, "column 'id' is empty in row 1"),
    "blank id": ({"id": ["a", "b", ""]}, "column 'id' is empty in row 2"),
    "twice": ({"id": ["a", "b", "a"]}, "duplicate id a (features)"),
    "empty path": ({"path": ["features", None, "features"]}, "column 'path' is empty in row 1"),
    "missing file": (
        {"path": ["features", "gone", "features"]},
        "1 files of 1 rows cannot be read: b (gone) is missing",
    ),
    "file for a store": (
        {"path": ["features", "speech.wav", "features"]},
        "b (speech.wav) is no store folder, though row is set",
    ),
    "store for a file": ({"row": [0, 1, None]}, "c (features) is a folder, though row is empty"),
    "folder for a store": ({"path": ["features", ".", "features"]}, "is not a readable store"),
    "no frames": ({"frames": None}, "column 'frames' is missing"),
    "frames of numbers": ({"frames": [3.0, 5.0, 4.0]}, "column 'frames' holds Float64; expected whole numbers"),
    "empty frames": ({"frames": [3, None, 4]}, "column 'frames' is empty in row b (features)"),
    "only empty frames": ({"frames": [None] * 3}, "column 'frames' is empty in row a (features), b (features), c"),
    "negative frames": ({"frames": [3, -5, 4]}, "frames must be positive, but b (features) has -5"),
    "zero frames": ({"frames": [3, 5, 0]}, "frames must be positive, but c (features) has 0"),
    "other frames": ({"frames": [3, 4, 4]}, "1 rows differ from their store: b (features) has 4 frames, the store 5"),
    "row outside": ({"row": [0, 1, 3]}, "c (features) has 4 frames, the store no row 3"),
    "negative row": ({"row": [0, -1, 2]}, "row must be 0 or more, or empty for an audio file, but b (features) has -1"),
    "empty rate": ({"rate": [50, None, 50]}, "column 'rate' is empty in row b (features)"),
    "zero rate": ({"rate": [50, 50, 0]}, "rate must be positive, but c (features) has 0"),
    "rate of numbers": ({"rate": [50.0] * 3}, "column 'rate' holds Float64; expected whole numbers"),
    "empty weight": ({"weight": [1.0, None, 1.0]}, "column 'weight' is empty in row b (features)"),
    "weight NaN": (
        {"weight": [1.0, float("nan"), 1.0]},
        "weight must be a number, 0 or more, but b (features) has nan",
    ),
    "weight infinite": ({"weight": [1.0, 1.0, float("inf")]}, "but c (features) has inf"),
    "negative weight": ({"weight": [-1, 1, 1]}, "but a (features) has -1"),
    "text weight": ({"weight": ["1", "1", "1"]}, "column 'weight' holds String; expected numbers"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(folder, name):
    changes, message = FAULTS[name]
    bad, path = table(**changes), folder / "manifest.parquet"
    with pytest.raises(InputError) as caught:
        write_manifest(bad, path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert sorted(os.listdir(folder)) == ["features", "speech.wav"]  # nothing was written
    bad.write_parquet(path)  # by another tool
    with pytest.raises(InputError) as again:
        read_manifest(path)
    assert message in str(again.value)


@pytest.mark.parametrize("dtype", [polars.UInt8, polars.UInt64, polars.Int8])
def test_whole_numbers_of_any_width(folder, dtype):
    path = folder / "manifest.parquet"
    write_manifest(table().with_columns(polars.col("row", "frames", "rate").cast(dtype)), path)
    assert read_manifest(path)["frames"].to_list() == [3, 5, 4]
    with pytest.raises(InputError, match=r"row 3"):
        write_manifest(table(row=[0, 1, 3]).with_columns(polars.col("row").cast(dtype)), path)


def test_many_faults_are_counted(folder):
    rows = [{"id": f"r{row}", "path": f"gone{row}.wav", "frames": 10} for row in range(9)]
    with pytest.raises(
        InputError, match=r"9 files of 9 rows cannot be read: r0 \(gone0.wav\) is missing, .* and 6 more"
    ):
        write_manifest(rows, folder / "manifest.parquet")


def test_empty_table_missing_and_damaged_files(folder):
    with pytest.raises(InputError, match=r"the table has no rows"):
        write_manifest(table().head(0), folder / "manifest.parquet")
    with pytest.raises(InputError, match=r"no manifest at .*gone.parquet"):
        read_manifest(folder / "gone.parquet")
    write_manifest(table(), folder / "manifest.parquet")
    whole = (folder / "manifest.parquet").read_bytes()
    for size in range(0, len(whole), 37):
        (folder / "cut.parquet").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut.parquet is not a readable parquet file") as caught:
            read_manifest(folder / "cut.parquet")
        assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_manifest(folder, monkeypatch):
    path = folder / "manifest.parquet"
    write_manifest(table(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        monkeypatch.setattr(manifest_module.os, name, fail)
        with pytest.raises(OSError, match="disk full"):
            write_manifest(table(label=["z"] * 3), path)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert sorted(os.listdir(folder)) == ["features", "manifest.parquet", "speech.wav"]


def test_where(folder):
    write_manifest(table(good=[True, False, True], part=[1, 2, 3]), folder / "manifest.parquet")

    def ids(**where):
        return read_manifest(folder / "manifest.parquet", where)["id"].to_list()

    assert ids(label="x") == ["a"] and ids(label=["y", "x"]) == ["a", "b"] and ids(part=2) == ["b"]
    assert ids(good=True) == ["a", "c"] and ids(good=True, part=[2, 3]) == ["c"]
    faults = {
        "has no column 'lable'; did you mean 'label'?": {"lable": "x"},
        "no row has label = 'z'": {"label": ["x", "z"]},
        "no row has all of {'label': 'x', 'part': 1": None,
    }
    for message, where in faults.items():
        with pytest.raises(InputError) as caught:
            if where is None:
                select_rows(table(part=[2, 1, 1]), {"label": "x", "part": 1}, "m")
            else:
                ids(**where)
        assert message in str(caught.value)
    with pytest.raises(InputError, match=r"column 'list' holds List\(Int64\)"):
        select_rows(table(list=[[1], [2], [3]]), {"list": 1}, "m")
