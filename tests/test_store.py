"""A store gives back what was put in, is there whole or not at all, and a damaged one is refused."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqformer import InputError, Store, StoreWriter, replace_folder

DTYPES = ["int16", "float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]


def write(folder: Path, arrays: list[np.ndarray], dtype: str) -> None:
    with StoreWriter(folder, dtype) as writer:
        assert [writer.add(array) for array in arrays] == list(range(len(arrays)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (5, 2), (0,)])
def test_round_trip(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (frames, *shape)).astype(dtype) for frames in (4, 0, 1, 17, 0)]
    write(tmp_path / "store", arrays, dtype)
    store = Store(tmp_path / "store")
    assert len(store) == 5 and store.lengths().tolist() == [4, 0, 1, 17, 0]
    for row, array in enumerate(arrays):
        assert store[row].dtype == np.dtype(dtype) and store[row].shape == array.shape
        np.testing.assert_array_equal(store[row], array)
    assert os.listdir(tmp_path) == ["store"]


def test_a_million_values_keep_their_bits(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, 2**20).astype(np.int16)
    cuts = np.sort(np.random.default_rng(1).integers(0, 2**20, 300))
    write(tmp_path / "store", np.split(values, cuts), "int16")
    store = Store(tmp_path / "store")
    np.testing.assert_array_equal(np.concatenate([store[row] for row in range(len(store))]), values)


def test_stores_without_rows_or_frames(tmp_path):
    write(tmp_path / "none", [], "float16")
    assert len(Store(tmp_path / "none")) == 0
    write(tmp_path / "empty", [np.zeros((0, 3), np.float16)], "float16")
    assert Store(tmp_path / "empty")[0].shape == (0, 3) and Store(tmp_path / "empty")[0].dtype == np.float16


def test_other_byte_order_and_dtypes_are_converted(tmp_path):
    write(tmp_path / "store", [np.arange(5, dtype=">i2"), np.arange(3), np.array([1.0, 2.0])], ">i2")
    store = Store(tmp_path / "store")
    assert [store[row].tolist() for row in range(3)] == [[0, 1, 2, 3, 4], [0, 1, 2], [1, 2]]
    write(tmp_path / "half", [np.array([0.1, np.nan, np.inf])], "float16")
    np.testing.assert_array_equal(Store(tmp_path / "half")[0], np.float16([0.1, np.nan, np.inf]))


@pytest.mark.parametrize(
    "dtype, array, message",
    [
        ("int16", np.array([0.25, -0.5]), "row 1 (float64) has values that int16 cannot hold"),  # audio in [-1, 1]
        ("int16", np.array([40_000]), "row 1 (int64) has values that int16 cannot hold"),
        ("int16", np.array([np.nan]), "has values that int16 cannot hold"),
        ("uint8", np.array([-1]), "has values that uint8 cannot hold"),
        ("float16", np.array([1e6]), "has values that float16 cannot hold"),
        ("int16", np.zeros((4, 2), np.int16), "row 1 has frames of shape (2,), the rows before it ()"),
    ],
)
def test_unfit_rows_are_refused_and_nothing_is_left(tmp_path, dtype, array, message):
    with pytest.raises(InputError) as caught, StoreWriter(tmp_path / "deep" / "store", dtype) as writer:
        writer.add(np.ones(4))
        writer.add(array)
    assert message in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_or_the_old_store(tmp_path, failure):
    for wanted in ([], ["store"]):
        with pytest.raises(failure), StoreWriter(tmp_path / "store", "int16") as writer:
            writer.add(np.arange(10))
            raise failure
        assert os.listdir(tmp_path) == wanted
        write(tmp_path / "store", [np.arange(3)], "int16")
    assert Store(tmp_path / "store")[0].tolist() == [0, 1, 2]


def test_full_disk_leaves_the_old_store(tmp_path, monkeypatch):
    write(tmp_path / "store", [np.arange(3)], "int16")

    def fail(*_, **__):
        raise OSError("disk full")

    for module, name in ((np, "save"), (os, "fsync")):
        monkeypatch.setattr(module, name, fail)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "store", [np.arange(9)], "int16")
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["store"] and Store(tmp_path / "store")[0].tolist() == [0, 1, 2]


def test_only_a_store_is_replaced(tmp_path):
    write(tmp_path / "store", [np.arange(3)], "int16")
    write(tmp_path / "store", [np.arange(4)], "int16")
    assert len(Store(tmp_path / "store")[0]) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="mine is not empty and is no store"):
        write(tmp_path / "mine", [], "int16")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="file is a file"):
        write(tmp_path / "file", [], "int16")


def test_two_writers_of_one_store_are_told_apart(tmp_path):
    with StoreWriter(tmp_path / "store", "int16") as writer:
        with pytest.raises(InputError, match="is being written already"):
            write(tmp_path / "store", [], "int16")
        with StoreWriter(tmp_path / "store2", "int16"):  # a name that begins alike is another's
            writer.add(np.arange(3))
    assert Store(tmp_path / "store")[0].tolist() == [0, 1, 2]


KILLED = """
import sys, time, numpy as np
from seqformer import StoreWriter
with StoreWriter(sys.argv[1], "int16") as writer:
    writer.add(np.arange(10))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    write(tmp_path / "store", [np.arange(3)], "int16")
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "store"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writing\n"
        write(tmp_path / "store", [np.arange(4)], "int16")  # leaves the living one alone
        assert len(os.listdir(tmp_path)) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(os.listdir(tmp_path)) == 2 and len(Store(tmp_path / "store")[0]) == 4
    write(tmp_path / "store", [np.arange(5)], "int16")
    assert os.listdir(tmp_path) == ["store"] and len(Store(tmp_path / "store")[0]) == 5


def change_facts(folder: Path, **facts) -> None:
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def write_offsets(folder: Path, offsets) -> None:
    np.save(folder / "offsets.npy", offsets, allow_pickle=True)


DAMAGES = {
    "no data": lambda f: (f / "data.bin").unlink(),
    "no offsets": lambda f: (f / "offsets.npy").unlink(),
    "no facts": lambda f: (f / "store.json").unlink(),
    "cut data": lambda f: (f / "data.bin").write_bytes((f / "data.bin").read_bytes()[:-1]),
    "long data": lambda f: (f / "data.bin").write_bytes((f / "data.bin").read_bytes() + b"12"),
    "no bytes of offsets": lambda f: (f / "offsets.npy").write_bytes(b""),
    "cut offsets": lambda f: (f / "offsets.npy").write_bytes((f / "offsets.npy").read_bytes()[:-9]),
    "cut facts": lambda f: (f / "store.json").write_text('{"format": 1'),
    "facts of a list": lambda f: (f / "store.json").write_text("[1]"),
    "facts of bytes": lambda f: (f / "store.json").write_bytes(b"\xff\xfe"),
    "other format": lambda f: change_facts(f, format=2),
    "object dtype": lambda f: change_facts(f, dtype="object"),
    "unknown dtype": lambda f: change_facts(f, dtype="int17"),
    "other dtype": lambda f: change_facts(f, dtype="int32"),
    "other shape": lambda f: change_facts(f, frame_shape=[2]),
    "negative shape": lambda f: change_facts(f, frame_shape=[-1, -1]),
    "huge shape": lambda f: change_facts(f, frame_shape=[2**62, 4]),
    "text shape": lambda f: change_facts(f, frame_shape=["1"]),
    "pickled offsets": lambda f: write_offsets(f, np.array([0, None, 7], dtype=object)),
    "float offsets": lambda f: write_offsets(f, np.array([0.0, 3.0, 7.0])),
    "falling offsets": lambda f: write_offsets(f, np.array([0, 9, 7])),
    "late offsets": lambda f: write_offsets(f, np.array([1, 3, 7])),
    "square offsets": lambda f: write_offsets(f, np.array([[0, 3, 7]])),
    "empty offsets": lambda f: write_offsets(f, np.array([], dtype=np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_stores_are_refused(tmp_path, damage):
    write(tmp_path / "store", [np.arange(3), np.arange(4)], "int16")
    DAMAGES[damage](tmp_path / "store")
    with pytest.raises(InputError) as caught:
        Store(tmp_path / "store")
    assert str(tmp_path / "store") in str(caught.value) and "\n" not in str(caught.value)


def test_rows_outside_are_refused(tmp_path):
    write(tmp_path / "store", [np.arange(3)], "int16")
    for row in (-1, 1):
        with pytest.raises(InputError, match=f"row {row} of 1"):
            Store(tmp_path / "store")[row]


def test_a_store_travels_as_its_name(tmp_path):
    write(tmp_path / "store", [np.arange(30_000)], "int16")
    store = Store(tmp_path / "store")
    store[0]
    sent = pickle.dumps(store)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)[0], np.arange(30_000))


def test_a_replaced_folder_is_old_or_new(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "out") as partial:
        (partial / "new").write_text("2")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]
    with replace_folder(tmp_path / "out") as partial:
        (partial / "new").write_text("2")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["new"]
