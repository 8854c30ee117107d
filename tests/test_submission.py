"""Submissions: equal to a loop that writes line by line; a file that does not fit the sample is never written."""

import csv
import gzip

import numpy as np
import polars
import pytest

from seqformer import InputError, submission, write_ragged_submission, write_submission


def ragged(rng: np.random.Generator, rows: int = 9, width: int = 2) -> tuple[dict, polars.DataFrame]:
    """Predictions (T, width) of some rows, and the table that says which positions they are."""
    lengths = rng.integers(1, 7, rows)
    last = np.cumsum(lengths) - 1
    names = [f"seq{row}" for row in range(rows)]
    table = {"id": names, "id_min": last - lengths + 1, "id_max": last, "frames": lengths}
    found = {name: rng.random((length, width), dtype=np.float32) for name, length in zip(names, lengths, strict=True)}
    return found, polars.DataFrame(table)


def read(path) -> list[list[str]]:
    if path.suffix == ".parquet":
        table = polars.read_parquet(path)
        return [table.columns, *([str(value) for value in row] for row in table.rows())]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.reader(content.decode().splitlines()))


def as_numbers(lines: list[list[str]]) -> list:
    return [[line[0], *np.float32(line[1:]).tolist()] for line in lines]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("lines", [1, 10, 500_000])
def test_ragged_against_a_loop(tmp_path, monkeypatch, ending, numbered, lines):
    monkeypatch.setattr(submission, "LINES", lines)
    found, rows = ragged(np.random.default_rng(lines))
    rows = rows.drop("frames") if numbered else rows.drop("id_min", "id_max")
    path, order = tmp_path / f"s{ending}", dict(reversed(found.items()))  # the order of the rows counts, not theirs
    write_ragged_submission(order, path, rows, ["dms", "2a3"], key="id_seqpos")
    wanted, number = [], 0
    for name in rows["id"]:
        for position, values in enumerate(found[name]):
            wanted.append([str(number) if numbered else f"{name}_{position}", *values.tolist()])
            number += 1
    header, *body = read(path)
    assert header == ["id_seqpos", "dms", "2a3"] and as_numbers(body) == wanted
    assert not list(tmp_path.glob(".*"))


def test_ragged_from_the_table_of_predict(tmp_path):
    found, rows = ragged(np.random.default_rng(1))
    table = polars.DataFrame({"id": list(found), "prediction": [value.tolist() for value in found.values()]})
    write_ragged_submission(found, tmp_path / "a.csv", rows, ["x", "y"])
    write_ragged_submission(table, tmp_path / "b.csv", rows, ["x", "y"])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def _set(found: dict, name: str, value) -> dict:
    return found | {name: value}


@pytest.mark.parametrize(
    "spoil, wanted",
    [
        (lambda f, r: ({k: v for k, v in f.items() if k != "seq3"}, r), "1 expected ids are missing: seq3"),
        (lambda f, r: (_set(f, "seqx", f["seq0"]), r), "1 ids are not expected: seqx"),
        (lambda f, r: (f, polars.concat([r, r[:1]])), "1 ids expected twice: seq0"),
        (lambda f, r: (_set(f, "seq8", f["seq8"][:-1]), r), r"row seq8: the prediction has shape"),
        (
            lambda f, r: (_set(f, "seq8", f["seq8"] * np.nan), r),
            "row seq8: the prediction at position 0 is empty or in",
        ),
        (
            lambda f, r: (_set(f, "seq8", f["seq8"] + np.inf), r),
            "row seq8: the prediction at position 0 is empty or in",
        ),
        (lambda f, r: (f, r.with_columns(id_min=r["id_min"] - 1)), "id_min to id_max of 8 rows overlap: seq0 and seq1"),
        (lambda f, r: (f, r.with_columns(id_max=r["id_min"] - 1)), "rows without a position: seq0"),
        (lambda f, r: (f, r.select("id")), "the rows have neither id_min and id_max nor frames; found id"),
    ],
)
def test_a_ragged_fault_writes_nothing(tmp_path, monkeypatch, spoil, wanted):
    monkeypatch.setattr(submission, "LINES", 4)  # the fault comes after the first lines went out
    found, rows = spoil(*ragged(np.random.default_rng(2)))
    (tmp_path / "s.csv").write_text("the one before")
    with pytest.raises(InputError, match=wanted):
        write_ragged_submission(found, tmp_path / "s.csv", rows, ["x", "y"])
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    assert (tmp_path / "s.csv").read_text() == "the one before"


SAMPLE = polars.DataFrame({"row_id": ["007", "b", "c"], "x": [0.0, 0, 0], "word": ["", "", ""]})


def answers(**changes) -> polars.DataFrame:
    return polars.DataFrame(
        {"word": ["three", "seven", "two"], "x": [3.0, 0.5, 2], "row_id": ["c", "007", "b"]} | changes
    )


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("kind", ["table", ".csv", ".parquet"])
def test_ids_and_columns_in_the_order_of_the_sample(tmp_path, ending, kind):
    sample = SAMPLE if kind == "table" else tmp_path / f"sample{kind}"
    if kind == ".csv":
        SAMPLE.write_csv(sample)
    elif kind == ".parquet":
        SAMPLE.write_parquet(sample)
    write_submission(answers(), tmp_path / f"s{ending}", sample)
    rows = [["007", "0.5", "seven"], ["b", "2.0", "two"], ["c", "3.0", "three"]]
    assert read(tmp_path / f"s{ending}") == [["row_id", "x", "word"], *rows]


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"row_id": ["c", "007", "d"]}, "1 expected ids are missing: b; 1 ids are not expected: d"),
        ({"row_id": ["c", "007", "007"]}, "1 ids submitted twice: 007"),
        ({"row_id": ["c", "007", None]}, "1 ids submitted are empty"),
        ({"x": [3.0, None, 2]}, "column 'x' is empty or infinite for 1 ids: 007"),
        ({"x": [3.0, float("nan"), 2]}, "column 'x' is empty or infinite for 1 ids: 007"),
        ({"x": [3.0, float("inf"), float("-inf")]}, "column 'x' is empty or infinite for 2 ids: 007, b"),
        ({"word": ["a", "b", None]}, "column 'word' is empty or infinite for 1 ids: b"),
        ({"y": [1, 2, 3]}, "the sample submission has no column y; it has row_id, x, word"),
    ],
)
def test_what_does_not_fit_the_sample(tmp_path, changes, wanted):
    with pytest.raises(InputError) as error:
        write_submission(answers(**changes), tmp_path / "s.csv", SAMPLE)
    assert wanted in str(error.value) and not list(tmp_path.iterdir())


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="the submission has no column 'x'; did you"):
        write_submission(answers().rename({"x": "x1"}), tmp_path / "s.csv", SAMPLE)
    with pytest.raises(InputError, match=r"unknown ending; a submission is one of \.csv, \.csv\.gz, \.parquet"):
        write_submission(answers(), tmp_path / "s.xlsx", SAMPLE)
    with pytest.raises(InputError, match="cannot write"):
        write_submission(answers(), tmp_path / "none" / "s.csv", SAMPLE)
    with pytest.raises(InputError, match="no sample submission at"):
        write_submission(answers(), tmp_path / "s.csv", tmp_path / "none.csv")
    assert not list(tmp_path.iterdir())
