"""Raw tables: what is read equals what was written, and a fault is one line with file, column and row."""

import gzip
import json

import numpy as np
import polars
import pytest

from seqformer import InputError, read_table

COLUMNS = {"name": str, "reads": int, "snr": float, "good": bool, "value": float | None}
ROWS = [
    {"name": "007", "reads": 3, "snr": 0.5, "good": True, "value": None, "other": 1},
    {"name": "b, c", "reads": -2, "snr": 4.0, "good": False, "value": 1.5, "other": 2},
]


def write(table: polars.DataFrame, path) -> None:
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[path.suffix](path)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_every_format_reads_the_same(tmp_path, ending):
    write(polars.DataFrame(ROWS), tmp_path / f"t{ending}")
    found = read_table(tmp_path / f"t{ending}", COLUMNS)
    assert found.columns == list(COLUMNS) and found.rows() == [tuple(row[name] for name in COLUMNS) for row in ROWS]
    assert found.schema == {"name": polars.String, "reads": polars.Int64, "snr": polars.Float64} | {
        "good": polars.Boolean, "value": polars.Float64}  # fmt: skip


def test_csv_of_other_makers(tmp_path):
    """True and False as pandas writes them, compressed, and tabs."""
    (tmp_path / "t.tsv").write_text("good\tid\nTrue\t1\nFalse\t2\n")
    assert read_table(tmp_path / "t.tsv", {"id": int, "good": bool}).rows() == [(1, True), (2, False)]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n"))
    assert read_table(tmp_path / "t.csv.gz", {"id": str})["id"].to_list() == ["1", "2"]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_lists(tmp_path, ending):
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal(n).tolist(), "pairs": [[1, n], [2, 3]]} for n in (1, 3, 2)]
    write(polars.DataFrame(rows), tmp_path / f"t{ending}")
    found = read_table(tmp_path / f"t{ending}", {"x": list[float], "pairs": list[list[int]]})
    assert found.to_dicts() == rows
    with pytest.raises(InputError, match=r"column 'x' holds List\(Float64\) in row 1 and 2 more rows; expected a nu"):
        read_table(tmp_path / f"t{ending}", {"x": float})


def test_a_bad_value_within_a_list(tmp_path):
    (tmp_path / "t.json").write_text("\n".join(json.dumps({"x": x}) for x in ([1, 2], [3, "many"], [])))
    with pytest.raises(InputError, match=r"t.json: column 'x' holds .* in row 2; expected a list of \(a whole number"):
        read_table(tmp_path / "t.json", {"x": list[int]})


@pytest.mark.parametrize(
    "text, columns, wanted",
    [
        ("id,reads\na,1\nb,many\nc,few\n", {"reads": int}, "'reads' holds 'many' in row 2 and 1 more rows; expected a"),
        ("id,reads\na,1\nb,1.5\n", {"reads": int}, "'reads' holds '1.5' in row 2; expected a whole number"),
        ("id,snr\na,1\nb,1;5\n", {"snr": float}, "'snr' holds '1;5' in row 2; expected a number"),
        ("id,snr\na,1\nb,\n", {"snr": float}, "'snr' is empty in row 2"),
        ("id,snr\na,NaN\nb,2\n", {"snr": float}, "'snr' is empty in row 1"),
        ("id,good\na,true\nb,yes\n", {"good": bool}, "'good' holds 'yes' in row 2; expected true or false"),
        ("id,snr\na,1\n", {"signal": float}, "has no column 'signal'; known: id, snr"),
        ("id,snr\na,1\n", {"srn": float}, "has no column 'srn'; did you mean 'snr'?"),
        ("id,snr\n", {"snr": float}, "the table has no rows"),
        ("", {"snr": float}, "cannot be read as a table"),
        ("id,snr\na,1\n", {"snr": list[float]}, "column 'snr' cannot hold lists"),
    ],
)
def test_faults_of_a_csv(tmp_path, text, columns, wanted):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_table(path, columns)
    assert str(path) in str(error.value) and wanted in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_of_a_float_column(tmp_path):
    polars.DataFrame({"n": [1.0, 2.5]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"'n' holds 2.5 in row 2; expected a whole number"):
        read_table(tmp_path / "t.parquet", {"n": int})
    polars.DataFrame({"n": [1.0, 2.0]}).write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", {"n": int})["n"].to_list() == [1, 2]


def test_no_table_and_no_type(tmp_path):
    with pytest.raises(InputError, match=r"no table at .*none.csv"):
        read_table(tmp_path / "none.csv", {"id": str})
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"unknown ending '.xlsx'"):
        read_table(tmp_path / "t.xlsx", {"id": str})
    (tmp_path / "t.csv").write_text("id\na\n")
    with pytest.raises(ValueError, match=r"is no type of a column"):
        read_table(tmp_path / "t.csv", {"id": complex})
