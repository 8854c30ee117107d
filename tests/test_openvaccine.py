"""OpenVaccine: made-up files of the real form, prepared, learned from, predicted and submitted; faults of files."""

import json
import shutil

import numpy as np
import polars
import pytest
import torch

from competitions.openvaccine.calibrate import calibrate
from competitions.openvaccine.generate import generate
from competitions.openvaccine.prepare import TARGETS, brackets, prepare
from competitions.openvaccine.submit import submit
from seqformer import InputError, SequenceDataset, read_manifest

torch.set_num_threads(1)

SMALL = ["folds.use=0", "train.epochs=1", "backbone.dim=16", "backbone.depth=1", "frontend.channels=[4]"]
SMALL += ["frontend.frontend.width=8", "train.device=cpu"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvaccine") / "raw"
    generate(folder, rows=30)
    return folder


@pytest.fixture
def changed(raw, tmp_path):
    """``changed(split, edit)``: a copy of the files with ``edit`` applied to the third line of one."""

    def change(split, edit):
        folder = shutil.copytree(raw, tmp_path / "raw")
        lines = (folder / f"{split}.json").read_text().splitlines()
        row = json.loads(lines[2])
        edit(row)
        lines[2] = json.dumps(row)
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")
        return folder

    return change


def test_a_prepared_row_is_the_raw_one(raw, tmp_path, capsys):
    table = read_manifest(prepare(raw, tmp_path))
    lines = [json.loads(line) for line in (raw / "train.json").read_text().splitlines()]
    examples = SequenceDataset(table, inputs=["values"], pairs=["pairs"])
    for index, line in enumerate(lines):
        example, matrix = examples.read(index), np.load(raw / "bpps" / f"{line['id']}.npy")
        assert "".join("ACGU"[base] for base in example.inputs["x"][:, 0]) == line["sequence"]
        np.testing.assert_array_equal(example.inputs["pairs"][..., 0], np.where(matrix < 0.005, 0, matrix))
        paired = {(int(i), int(j)) for i, j in np.argwhere(np.triu(example.inputs["pairs"][..., 1]))}
        assert paired == set(brackets(line["structure"]))
        np.testing.assert_allclose(example.inputs["values"][:, 0], matrix.sum(axis=0), rtol=1e-5)
        kept = table["degradation"][index].to_list()
        assert kept[68:] == [None] * 39
        np.testing.assert_allclose(kept[:68], np.array([line[name] for name in TARGETS]).T)
    assert table["degradation"].null_count() == 10  # the test rows
    assert table.filter(split="test")["frames"].to_list() == [107, 130] * 5


def test_from_files_to_submission(raw, tmp_path, program, capsys):
    manifest = prepare(raw, tmp_path / "data")
    given = ["configs/openvaccine.yaml", f"data.manifest={manifest}", *SMALL]
    code, _, error = program("train", *given, "--root", tmp_path / "runs")
    assert not code, error
    where = ["--where", "split=test"]
    code, _, error = program("predict", tmp_path / "runs/openvaccine", manifest, tmp_path / "p.parquet", *where)
    assert not code, error
    submit(tmp_path / "p.parquet", manifest, tmp_path / "submission.csv")
    found = polars.read_csv(tmp_path / "submission.csv")
    assert found.columns == ["id_seqpos", *TARGETS] and found.height == 5 * (107 + 130)
    predicted = dict(polars.read_parquet(tmp_path / "p.parquet").iter_rows())
    np.testing.assert_allclose(
        found.row(by_predicate=polars.col("id_seqpos") == "test_3_129")[1:], predicted["test_3"][129], rtol=1e-5
    )


def test_lines_fitted_out_of_fold_undo_a_scale(raw, tmp_path, capsys):
    """Predictions that are a line away from the truth come back to it; the test rows, which have none, by the same."""
    manifest, run = prepare(raw, tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    table = read_manifest(manifest)
    slope, offset = np.array([0.5, 2.0, 0.8, 1.0, 1.5]), np.array([0.1, -0.3, 0.0, 0.2, 0.5])
    truth = {
        row: [v for v in values if v] for row, values in table.select("id", "degradation").drop_nulls().iter_rows()
    }
    bent = {row: ((np.array(values) - offset) / slope).tolist() for row, values in truth.items()}
    given = {"test_0": np.ones((107, 5)).tolist()}
    for name, rows in (("run/oof", bent), ("given", given)):
        polars.DataFrame({"id": list(rows), "prediction": list(rows.values())}).write_parquet(
            tmp_path / f"{name}.parquet"
        )
    calibrate(run, manifest, tmp_path / "given.parquet", tmp_path / "out.parquet")
    found = polars.read_parquet(tmp_path / "out.parquet")["prediction"][0].to_list()
    np.testing.assert_allclose(found, np.tile(slope + offset, (107, 1)), atol=1e-6)
    assert " -> 0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "split, edit, message",
    [
        (
            "train",
            lambda row: row.update(sequence="ACGT" + row["sequence"][4:]),
            r"train.json: sequence of row 2 .*'T'",
        ),
        (
            "test",
            lambda row: row.update(structure=row["structure"][1:]),
            r"test.json: structure of row 2 .* not as long",
        ),
        (
            "train",
            lambda row: row.update(structure="(" * 107),
            r"train_2: structure: the bracket at 106 is never closed",
        ),
        ("test", lambda row: row.update(id="stranger"), r"no base pairs for stranger"),
    ],
)
def test_a_faulty_file_is_one_line_and_nothing_is_written(changed, split, edit, message, tmp_path):
    folder = changed(split, edit)
    with pytest.raises(InputError, match=message) as caught:
        prepare(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "manifest.parquet").exists()
