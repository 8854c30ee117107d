"""Cases of the time series archive are read exactly, from either form, or refused with their place."""

import sys
from pathlib import Path

import numpy as np
import polars
import pytest

import seqformer
from competitions.natops.archive import read_ts
from competitions.natops.prepare import main, prepare

SHARED = Path(__file__).parents[2] / "shared" / "data"
HEADER = """# made by hand
@problemName Toy
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true left right

@data
"""


def toy_cases(split: str) -> list[tuple[str, np.ndarray]]:
    """Labels and values (T, 2) that belong to the split and the number of the case, so that a mix-up shows."""
    rng = np.random.default_rng(list(split.encode()))
    return [(("left", "right")[n % 2], rng.standard_normal((3 + n % 4, 2)).astype(np.float32)) for n in range(22)]


def write_ts(path: Path, cases: list[tuple[str, np.ndarray]]) -> None:
    words = [":".join(",".join(map(str, column)) for column in x.T) + f":{label}" for label, x in cases]
    path.write_text(HEADER + "\n".join(words) + "\n")


def write_table(path: Path, cases: list[tuple[str, np.ndarray]]) -> None:
    name = path.stem[:2]
    rows = [
        {"id": f"{name}{n}", "label": label, "n_frames": len(x), "n_channels": 2, "x": x.ravel().tolist()}
        for n, (label, x) in enumerate(cases)
    ]
    polars.DataFrame(rows).write_parquet(path)


def write_toy(folder: Path, form: str) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        if form == ".ts":
            write_ts(folder / f"Toy_{split.upper()}.ts", toy_cases(split))
        else:
            write_table(folder / f"{split}.parquet", toy_cases(split))
    (folder / "README.md").write_text("not a case")
    return folder


@pytest.mark.parametrize("form", [".ts", ".parquet"])
def test_both_forms_give_the_same_cases(tmp_path, form):
    table = seqformer.read_manifest(prepare([write_toy(tmp_path / "toy", form)], tmp_path / "out"))
    assert table.columns == ["id", "path", "row", "frames", "label", "split", "tenth"]
    store, wanted = seqformer.Store(tmp_path / "out" / "series"), toy_cases("train") + toy_cases("test")
    assert table["split"].to_list() == ["train"] * 22 + ["test"] * 22
    for row, (label, x) in zip(table.to_dicts(), wanted, strict=True):
        assert (row["label"], row["frames"]) == (label, len(x))
        np.testing.assert_array_equal(store[row["row"]], x)
    # 11 cases of a class in ten parts, in the order of the file
    assert table["tenth"].to_list()[::2][:11] == [10 * n // 11 for n in range(11)] == table["tenth"].to_list()[1:22:2]


def test_a_file_written_by_hand(tmp_path):
    path = tmp_path / "hand.ts"
    path.write_text(HEADER + "1,2.5,-3e-1:?,0,7:left\n\n4:5:right\n")
    first, second = read_ts(path)
    assert (first["label"], second["label"]) == ("left", "right") and (first["id"], second["id"]) == (
        "hand-0",
        "hand-1",
    )
    np.testing.assert_array_equal(first["x"], np.array([[1, np.nan], [2.5, 0], [-0.3, 7]], np.float32))
    np.testing.assert_array_equal(second["x"], [[4, 5]])


def test_one_dimension_and_one_length(tmp_path):
    path = tmp_path / "one.ts"
    path.write_text("@univariate TRUE\n@equallength true\n@serieslength 2\n@classlabel true 1 2\n@data\n1,2:2\n3,4:1\n")
    np.testing.assert_array_equal([case["x"][:, 0] for case in read_ts(path)], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "text, wanted",
    [
        (HEADER + "1,2:3,x:left\n", "toy.ts, line 11, dimension 2: value 2 is 'x'; expected a number or ?"),
        (HEADER + "1,2:3,inf:left\n", "toy.ts, line 11, dimension 2: value 2 is 'inf'"),
        (HEADER + "1,2:3,:left\n", "toy.ts, line 11, dimension 2: value 2 is ''"),
        (HEADER + "1,2:3,4:left\n1,2:3:left\n", "line 12, dimension 2: 1 values, the first dimension has 2"),
        (HEADER + "1,2:3,4:5,6:left\n", "line 11: 3 dimensions; expected 2"),
        (HEADER + "1,2:3,4:up\n", "line 11: class 'up' after the last ':' is not one of the header's"),
        (HEADER + "1,2:3,4\n", "line 11: class '3,4'"),
        (HEADER, "no case after @data"),
        ("1,2:left\n", "line 1: found '1,2:left'; expected a header line"),
        ("@datas\n", "line 1: found '@datas'"),
        ("@problemName x\n", "no line @data"),
        (HEADER.replace("@timeStamps false", "@timeStamps true"), "@timeStamps true; only series without"),
        (HEADER.replace("@classLabel true left right", "@targetlabel true"), "@classLabel missing; expected true"),
        (HEADER.replace("@dimensions 2", "@dimensions two"), "@dimensions two; expected a whole number"),
        (
            HEADER.replace("@equalLength false", "@equalLength true") + "1:2:left\n1,2:3,4:left\n",
            "has 2 frames, the he",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, text, wanted):
    path = tmp_path / "toy.ts"
    path.write_text(text)
    with pytest.raises(seqformer.InputError) as caught:
        read_ts(path)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def change_table(path: Path, **columns) -> None:
    polars.read_parquet(path).with_columns(**columns).write_parquet(path)


def narrow(folder: Path) -> None:
    (folder / "test.parquet").unlink()
    (folder / "test.ts").write_text(HEADER.replace("@dimensions 2", "@dimensions 1") + "1,2:left\n")


@pytest.mark.parametrize(
    "damage, wanted",
    [
        (lambda f: (f / "test.parquet").unlink(), "expected one file *TEST.ts or *test.parquet, found none"),
        (lambda f: (f / "test.parquet").write_text("x"), "test.parquet is not a readable parquet file"),
        (lambda f: write_ts(f / "toy_TEST.ts", toy_cases("test")), "found test.parquet, toy_TEST.ts"),
        (lambda f: change_table(f / "test.parquet", label=None), "column 'label' is empty in row 0"),
        (lambda f: change_table(f / "test.parquet", x=polars.lit(1.0)), "column 'x' holds Float64"),
        (lambda f: change_table(f / "test.parquet", n_frames=9), "test.parquet, row 0 (te0): x has 6 values"),
        (lambda f: write_table(f / "test.parquet", toy_cases("test")[:0]), "column 'id' is missing"),
        (lambda f: change_table(f / "test.parquet", id=polars.lit("tr0")), "id 'tr0' is in "),
        (
            lambda f: (
                (f / "test.parquet").unlink() or (f / "test.ts").write_text(HEADER.replace(" 2", " 1") + "1:left")
            ),
            "test.ts has 1 channels",
        ),
    ],
)
def test_bad_folders_are_refused_whole(tmp_path, monkeypatch, capsys, damage, wanted):
    damage(write_toy(tmp_path / "toy", ".parquet"))
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / "toy"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        seqformer.run_command(main)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared copies of the data sets are not here")
@pytest.mark.parametrize("name, rows, channels", [("natops", 306, 24), ("uea_japanesevowels", 548, 12)])
def test_real_cases(tmp_path, name, rows, channels):
    table = seqformer.read_manifest(prepare([SHARED / name], tmp_path / "out"))
    store = seqformer.Store(tmp_path / "out" / "series")
    raw = polars.concat([polars.read_parquet(SHARED / name / f"{split}.parquet") for split in ("train", "test")])
    assert table.height == rows and store.frame_shape == (channels,)
    for number in (0, rows - 1):
        np.testing.assert_array_equal(store[number].ravel(), raw["x"][number].to_numpy())
