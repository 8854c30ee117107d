"""A run that starts from another, or is taught by one: fold k learns from fold k, and never from what it validates."""

import json
import math
import shutil
from pathlib import Path

import polars
import pytest
import torch
from conftest import DENSE, TINY, change, poisoned

from seqformer import InputError
from seqformer.batch import Batch
from seqformer.checkpoint import load_weights
from seqformer.config import build_config
from seqformer.data.lineage import INHERITED, rows_seen
from seqformer.predict import TrainedRun
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer
from seqformer.train.teacher import Teacher

# Nothing in it depends on train or eval mode.
STEADY = {"augment": [], "backbone__dropout": 0.0, "backbone__conv_norm": "layer", **DENSE}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> tuple[dict, Path]:
    """A finished run ``first`` of both folds and of a full fit: its config, and the folder of runs."""
    root = tmp_path_factory.mktemp("stages")
    plain = change(TINY, run="first", data__manifest=str(poisoned(root, [])), train__epochs=1, **STEADY)
    for use in ("all", "full"):
        train_run(change(plain, folds__use=use), root, quiet=True)
    return plain, root


def second(earlier, root: Path, **changes) -> dict:
    """A run that starts from ``first``, in a folder of its own."""
    return change(earlier[0], **{"run": "second", "init_from": str(earlier[1] / "first")} | changes)


def begun(plain: dict, root: Path, monkeypatch) -> list[dict]:
    """The weights with which each fold begins its first step; no step is made."""
    found = []

    def noted(self):
        found.append({key: value.clone() for key, value in self.job.model.state_dict().items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FoldTrainer, "work", noted)
        with pytest.raises(KeyboardInterrupt):
            train_run(plain, root, quiet=True)
    return found


def refusal(plain: dict, root: Path) -> str:
    with pytest.raises(InputError) as caught:
        train_run(plain, root, quiet=True)
    assert "\n" not in str(caught.value) and not (root / plain["run"] / "config.yaml").exists()
    return str(caught.value)


@pytest.mark.parametrize("use, folder", [(0, "fold0"), (1, "fold1"), ("full", "full")])
def test_a_fold_starts_from_the_same_fold(earlier, tmp_path, monkeypatch, use, folder):
    (found,) = begun(second(earlier, tmp_path, folds__use=use), tmp_path, monkeypatch)
    wanted = load_weights(earlier[1] / "first" / folder / "last")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_earlier_run_may_be_named_and_then_go(earlier, tmp_path, monkeypatch):
    """By its name beside the new one; after the first checkpoint nobody needs it, and the score knows of its rows."""
    shutil.copytree(earlier[1] / "first", tmp_path / "first")
    plain, save = second(earlier, tmp_path, init_from="first", train__epochs=2), FoldTrainer.save

    def save_and_stop(self, name):
        save(self, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FoldTrainer, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(plain, tmp_path, quiet=True)
    shutil.rmtree(tmp_path / "first")
    train_run(plain, tmp_path, quiet=True)
    assert json.loads((tmp_path / "second/fold0/done.json").read_text())["epochs"] == 2
    inherited = set(polars.read_parquet(tmp_path / "second/fold0" / INHERITED)["id"])
    assert inherited == {f"row{row:02d}" for row in range(40) if row % 2}  # fold 0 validates the even rows


def test_what_fold_k_validates_must_be_unseen(earlier, tmp_path):
    plain = second(earlier, tmp_path, folds={"kind": "kfold", "n": 2, "use": 0})
    for key in ("init_from", "teacher"):
        given = {"init_from": None, "teacher": {"run": plain["init_from"]}} if key == "teacher" else {}
        message = refusal(plain | given, tmp_path)
        assert message.startswith(f"{key}: ") and "fold0 has learned from" in message
        assert "rows that this fold 0 validates: row" in message


def test_what_the_earlier_run_inherited_counts_too(earlier, tmp_path):
    """A first stage trained on rows that the second's table does not have; the third's does, and validates them."""
    shutil.copytree(earlier[1] / "first", tmp_path / "first")
    folds = polars.read_parquet(tmp_path / "first" / "folds.parquet")
    few = folds.filter(polars.col("id").is_in(["row01", "row02"]))
    few.write_parquet(tmp_path / "first" / "folds.parquet")
    assert rows_seen(tmp_path / "first" / "fold0") == {"row01"} and rows_seen(tmp_path / "first/full") == {
        "row01",
        "row02",
    }
    few.select("id").with_columns(id=polars.lit("row04")).write_parquet(tmp_path / "first" / "fold0" / INHERITED)
    assert rows_seen(tmp_path / "first" / "fold0") == {"row01", "row04"}
    assert TrainedRun(tmp_path / "first").trained_on(polars.Series(["row04", "row06"])) == ["row04"]
    message = refusal(second(earlier, tmp_path, init_from="first"), tmp_path)
    assert "has learned from 1 rows that this fold 0 validates: row04" in message


def test_a_run_or_a_fold_that_is_not_there(earlier, tmp_path):
    assert "did you mean 'first'?" in refusal(second(earlier, earlier[1], init_from="frist"), earlier[1])
    shutil.copytree(earlier[1] / "first", tmp_path / "first")
    (tmp_path / "first/fold1/done.json").unlink()
    message = refusal(second(earlier, tmp_path, init_from="first", folds__use="all"), tmp_path)
    assert "first has no finished fold1; finished: fold0, full" in message


def test_other_weights_are_named_or_skipped(earlier, tmp_path, monkeypatch):
    wide = second(earlier, tmp_path, text={"kind": "chars", "alphabet": "abcd"}, backbone__depth=3)
    assert "heads.ctc.linear.weight (4, 16), here (5, 16)" in refusal(
        wide | {"backbone": earlier[0]["backbone"]}, tmp_path
    )
    message = refusal(wide, tmp_path)
    assert "differs from this model in" in message and "backbone.blocks.2." in message and " (not there), " in message
    (found,) = begun(wide | {"init_skip": ["heads.*", "backbone.blocks.2.*"]}, tmp_path, monkeypatch)
    theirs = load_weights(earlier[1] / "first/fold0/last")
    same = {key for key, value in theirs.items() if value.shape == found[key].shape and torch.equal(value, found[key])}
    assert same == {key for key in theirs if not key.startswith("heads.")}
    message = refusal(second(earlier, tmp_path, init_skip=["head.*"]) | {"run": "third"}, tmp_path)
    assert message == "init_skip: no weight of the model matches 'head.*'; known: ctc"


def test_outputs_must_mean_the_same(earlier, tmp_path):
    """As many characters, in another order: the weights fit, and would be wrong."""
    plain = second(earlier, tmp_path, text={"kind": "chars", "alphabet": "cba"})
    wanted = "outputs of head 'ctc' of"
    assert wanted in refusal(plain, tmp_path) and "init_skip: ['heads.ctc.*']" in refusal(plain, tmp_path)
    message = refusal(plain | {"init_from": None, "teacher": {"run": plain["init_from"]}}, tmp_path)
    assert message.startswith(f"teacher: {wanted}") and "init_skip" not in message


def test_a_student_that_is_its_teacher_has_nothing_to_learn(earlier, tmp_path):
    taught = {"run": str(earlier[1] / "first"), "weight": 1.0}
    plain = second(earlier, tmp_path, train__epochs=1, teacher=taught, optim__lr=1e-12, optim__min_lr=0.0)
    train_run(plain, tmp_path, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "second/log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert steps and all(abs(step["loss"]) < 1e-6 and step["grad_norm"] < 1e-4 for step in steps)
    assert any(record.get("valid_loss", 0) > 0.1 for record in records)  # that of the targets, as ever


def teacher(values: bool, weight: float = 0.25, temperature: float = 3.0, answers=None) -> Teacher:
    return Teacher(lambda inputs, mask: {"main": answers}, "main", "main", weight, temperature, values, "")


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("framed", [False, True])
def test_the_distance_is_its_formula_and_padding_has_no_part(values, framed):
    torch.manual_seed(0)
    lengths, weight = [4, 2, 3], torch.tensor([1.0, 0.5, 2.0])
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    ours, theirs = torch.randn(2, 3, 4, 5).unbind() if framed else torch.randn(2, 3, 5).unbind()
    pairs = [(item, (item, frame)) for item in range(3) for frame in range(lengths[item])]
    pairs = pairs if framed else [(item, item) for item in range(3)]
    total = 0.0
    for item, place in pairs:
        p, q = (theirs[place] / 3).double().softmax(0), (ours[place] / 3).double().softmax(0)
        gap = (ours[place] - theirs[place]).double().square().mean() if values else 9 * (p * (p / q).log()).sum()
        total += float(weight[item] * gap)
    wanted = 0.75 * 2.0 + 0.25 * total / sum(float(weight[item]) for item, _ in pairs)
    for filler in (0.0, math.nan, 1e38):
        if framed:
            ours, theirs = (tensor.masked_fill(~mask[..., None], filler) for tensor in (ours, theirs))
        given = ours.clone().requires_grad_()
        batch = Batch(["a", "b", "c"], {}, mask, {}, weight)
        loss = teacher(values, answers=theirs).loss({"loss": torch.tensor(2.0), "logits": (given, mask)}, batch)
        loss.backward()
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        assert given.grad.isfinite().all() and (not framed or not given.grad[~mask].any())


def test_frames_must_match():
    mask, batch = torch.ones(2, 3, dtype=torch.bool), Batch(["a", "b"], {}, torch.ones(2, 3).bool(), {}, torch.ones(2))
    for shape, wanted in (((2, 4, 5), "its logits are (2, 4, 5), the student's (2, 3, 5)"), ((2, 3, 5, 1), "neither")):
        own = torch.zeros(2, 3, 5) if len(shape) == 3 else torch.zeros(shape)
        with pytest.raises(InputError) as caught:
            teacher(False, answers=torch.zeros(shape)).loss({"loss": torch.zeros(()), "logits": (own, mask)}, batch)
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"teacher": {"run": "x", "weight": 1.5}}, "teacher.weight is 1.5; it must be from 0 to 1"),
        ({"teacher": {"run": "x", "temperature": 0.0}}, "teacher.temperature is 0.0; it must be above 0"),
        ({"teacher": {"weight": 0.5}}, "teacher.run is missing"),
        ({"init_skip": ["heads.*"]}, "init_skip needs init_from, the run to start from"),
    ],
)
def test_a_faulty_section_is_one_line(changes, wanted):
    with pytest.raises(InputError) as caught:
        build_config(change(TINY, **changes))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_that_the_teacher_has_not(earlier, tmp_path):
    plain = second(earlier, tmp_path, init_from=None, teacher={"run": str(earlier[1] / "first"), "head": "ctx"})
    assert "teacher.head: the config has no 'ctx'; did you mean 'ctc'?" in refusal(plain, tmp_path)


def test_a_head_without_logits_has_no_teacher(earlier, tmp_path):
    plain = second(earlier, tmp_path, init_from=None, teacher={"run": str(earlier[1] / "first")})
    plain["head"] = {"name": "decoder", "heads": 2}
    assert "teacher: head 'decoder' answers neither per item nor per frame" in refusal(plain, tmp_path)


def test_another_teacher_is_refused_on_resuming(earlier, tmp_path, monkeypatch):
    """The weights of the teacher are part of what comes out: a checkpoint names them."""
    shutil.copytree(earlier[1] / "first", tmp_path / "first")
    plain = second(earlier, tmp_path, init_from=None, teacher={"run": "first"})
    train_run(plain, tmp_path, quiet=True)
    (tmp_path / "second/fold0/done.json").unlink()
    train_run(plain, tmp_path, quiet=True)
    (tmp_path / "second/fold0/done.json").unlink()
    shutil.rmtree(tmp_path / "first/fold0")
    train_run(change(earlier[0], seed=11), tmp_path, quiet=True, accept_changes=True)
    with pytest.raises(InputError, match=r"was taught by other weights than those of teacher\.run now"):
        train_run(plain, tmp_path, quiet=True)
