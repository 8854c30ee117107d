"""LEAP: made-up files of the real form, prepared, learned from, predicted and submitted; faults of files."""

import numpy as np
import polars
import pytest
import torch

from competitions.leap.columns import FLUXES, INPUTS, PROFILES, TARGETS
from competitions.leap.generate import generate
from competitions.leap.prepare import prepare
from competitions.leap.submit import submit
from seqformer import InputError, SequenceDataset, read_manifest

torch.set_num_threads(1)

SMALL = ["train.epochs=2", "train.device=cpu", "train.threads=1", "data.batch_frames=960", "optim.lr=0.01"]
SMALL += ["backbone.dim=8", "backbone.depth=1", "backbone.kernel=3", "head.tendency.hidden=8", "head.flux.hidden=8"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leap") / "raw"
    generate(folder, rows=60)
    return folder


@pytest.fixture(scope="module")
def manifest(raw, tmp_path_factory):
    return prepare(raw, tmp_path_factory.mktemp("leap") / "data")


def test_the_files_have_the_published_number_of_columns():
    assert (len(INPUTS), len(TARGETS)) == (556, 368)


def test_a_prepared_row_is_the_raw_one(raw, manifest):
    table, lines = read_manifest(manifest), polars.read_csv(raw / "train.csv")
    example = SequenceDataset(table, inputs=["static"]).read(7)
    for channel, name in enumerate(PROFILES):
        wanted = [lines[f"{name}_{level}"][7] for level in range(60)]
        np.testing.assert_allclose(example.inputs["x"][:, channel], wanted, rtol=1e-6)
    assert example.inputs["static"].shape == (16,) and example.inputs["static"][0] == np.float32(lines["state_ps"][7])
    found = np.array(table["tendency"][:60].to_list())
    wanted = lines["ptend_u_30"].to_numpy()
    np.testing.assert_allclose(found[:, 30, 4], (wanted - wanted.mean()) / wanted.std(), atol=1e-5)
    assert np.isnan(found[:, :12, 1:]).all() and not np.isnan(found[:, 12:]).any()
    assert table.filter(split="test")["tendency"].null_count() == table.filter(split="test")["flux"].null_count() == 20
    assert table["block"].drop_nulls().is_sorted()


def test_from_files_to_submission(raw, manifest, tmp_path, program):
    given = ["configs/leap.yaml", f"data.manifest={manifest}", *SMALL, "--root", tmp_path]
    code, _, error = program("train", *given)
    assert not code, error
    code, _, error = program("save", tmp_path / "leap", tmp_path / "checkpoint")
    assert not code, error
    submit(manifest, raw / "sample_submission.csv", tmp_path / "submission.csv", [tmp_path / "checkpoint"] * 2)
    found, train = polars.read_csv(tmp_path / "submission.csv"), polars.read_csv(raw / "train.csv")
    assert found.columns == ["sample_id", *TARGETS]
    assert found["sample_id"].to_list() == [f"test_{n}" for n in range(20)]
    assert (found["ptend_u_11"] == 0).all()  # of weight 0
    for name in ("ptend_t_40", "ptend_q0001_59", *FLUXES):  # in the units of the file
        assert abs(found[name].mean() - train[name].mean()) < 2 * train[name].std()


@pytest.mark.parametrize(
    "file, column, row, value, message",
    [
        ("train", "state_t_3", 4, "warm", r"train.csv: column 'state_t_3' holds 'warm' in row 5"),
        ("train", "ptend_u_59", 0, "", r"train.csv: column 'ptend_u_59' is empty in row 1"),
        ("test", "cam_in_LWUP", 9, "inf", r"test.csv: column 'cam_in_LWUP' is infinite in row 10"),
    ],
)
def test_a_faulty_file_is_one_line_and_nothing_is_written(raw, tmp_path, file, column, row, value, message):
    for split in ("train", "test"):
        table = polars.read_csv(raw / f"{split}.csv", infer_schema=False)
        if split == file:
            values = table[column].to_list()
            values[row] = value or None
            table = table.with_columns(polars.Series(column, values, dtype=polars.String))
        table.write_csv(tmp_path / f"{split}.csv")
    with pytest.raises(InputError, match=message) as caught:
        prepare(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "manifest.parquet").exists()


def test_a_file_without_a_column_says_so(raw, tmp_path):
    polars.read_csv(raw / "train.csv").drop("pbuf_CH4_7").write_csv(tmp_path / "train.csv")
    with pytest.raises(InputError, match=r"train.csv has no column 'pbuf_CH4_7'"):
        prepare(tmp_path, tmp_path / "out")
