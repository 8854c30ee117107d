"""Blends: weights no worse than a grid of them, scores that are cross-fitted, and files that predict what they say."""

import itertools
import json

import numpy as np
import polars
import pytest
from small_runs import LEVELS, small, train, write_rows

from seqformer import InputError, metrics, read_manifest
from seqformer.blend import Blend, blend_runs, cross_fitted, fit_weights
from seqformer.config import write_config
from seqformer.ensemble import Ensemble, read_blend
from seqformer.predict import TrainedRun


def grid(count: int, parts: int = 20):
    """All weights that are multiples of 1/parts."""
    for chosen in itertools.product(range(parts + 1), repeat=count - 1):
        if sum(chosen) <= parts:
            yield np.array([*chosen, parts - sum(chosen)]) / parts


def random_blend(rng: np.random.Generator, kind: str, count: int, rows: int = 40) -> Blend:
    """Predictions of unequal quality: classes, values of an item, or values of each frame."""
    noise = rng.uniform(0.3, 2, count)
    if kind == "classes":
        truth = rng.integers(0, 3, rows)
        raw = [np.eye(3)[truth] + level * rng.standard_normal((rows, 3)) for level in noise]
        return Blend(
            [list(np.exp(x) / np.exp(x).sum(1, keepdims=True)) for x in raw], truth.tolist(), {"name": "accuracy"}
        )
    shapes = [(int(length), 2) if kind == "frames" else (3,) for length in rng.integers(1, 9, rows)]
    truth = [rng.standard_normal(shape) for shape in shapes]
    truth[0][:1] = np.nan  # not scored
    guesses = [[value + level * rng.standard_normal(value.shape) for value in truth] for level in noise]
    guesses = [[np.nan_to_num(value) for value in guess] for guess in guesses]
    return Blend(guesses, truth, {"name": "mae"})


@pytest.mark.parametrize("kind", ["classes", "values", "frames"])
@pytest.mark.parametrize("count", [2, 3])
def test_weights_against_a_grid(kind, count):
    rng = np.random.default_rng(count)
    for _ in range(4):
        blend = random_blend(rng, kind, count)
        weights = fit_weights(blend.loss, count)
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
        assert blend.loss(weights) <= min(map(blend.loss, grid(count))) + 1e-9


def test_equal_weights_where_nothing_does_better():
    np.testing.assert_array_equal(fit_weights(lambda weights: 1.0, 4), np.full(4, 0.25))


def test_a_smooth_minimum_is_found_with_many_runs():
    """Least squares with a known answer inside the simplex, for more runs than the lattice is fine for."""
    rng = np.random.default_rng(0)
    wanted = rng.dirichlet(np.ones(8))
    basis = rng.standard_normal((50, 8))
    weights = fit_weights(lambda w: float(np.square(basis @ (w - wanted)).mean()), 8)
    np.testing.assert_allclose(weights, wanted, atol=0.01)


def test_the_score_never_sees_weights_fitted_on_its_rows():
    """By hand: each fold's mean by the weights of the others. Unlike a fit on all rows, noise does not flatter it."""
    rng = np.random.default_rng(1)
    blend, folds = random_blend(rng, "values", 3), np.arange(40) % 4
    found, wanted = cross_fitted(blend, folds), []
    for fold in range(4):
        weights = fit_weights(lambda w: blend.loss(w, folds != fold), 3)  # noqa: B023
        rows = np.flatnonzero(folds == fold)
        wanted += [np.abs(blend.predict(weights)[row] - blend.truth[row]) for row in rows]
    assert found == pytest.approx(np.nanmean(np.stack(wanted)))
    assert found >= blend.score(fit_weights(blend.loss, 3))


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Two runs that predict a value a frame, and rows they never saw."""
    root = tmp_path_factory.mktemp("blend")
    rows, new = write_rows(root), write_rows(root, range(50, 56), "new")
    runs = [train(root, small(rows, run=f"levels{seed}", seed=seed, **LEVELS)) for seed in (0, 1)]
    return runs, new


def test_a_blend_file_predicts_what_its_weights_say(levels, program, tmp_path):
    (one, two), new = levels
    code, out, err = program("blend", one, two, "--out", tmp_path / "b.json")
    assert code == 0, err
    facts = json.loads((tmp_path / "b.json").read_text())
    assert f"{facts['score']:.4f}" in out and f"{facts['equal']:.4f}" in out and facts["metric"] == "mae"
    assert not any(str(entry["run"]).startswith("/") for entry in facts["runs"])
    for entry, run in zip(facts["runs"], (one, two), strict=True):
        assert entry["score"] == pytest.approx(json.loads((run / "metrics.json").read_text())["out_of_fold"])
    assert program("predict", tmp_path / "b.json", new, tmp_path / "o.parquet")[0] == 0
    found = {row["id"]: row["prediction"] for row in polars.read_parquet(tmp_path / "o.parquet").iter_rows(named=True)}
    table, weights = read_manifest(new), [entry["weight"] for entry in facts["runs"]]
    apart = [TrainedRun(run).predict(table) for run in (one, two)]
    for row_id, value in found.items():
        np.testing.assert_allclose(value, sum(w * p[row_id] for w, p in zip(weights, apart, strict=True)), rtol=1e-6)
    wanted = metrics.mae(
        np.concatenate([np.ravel(found[row]) for row in table["id"]]), np.concatenate(table["level"].to_list())
    )
    assert f"mae {wanted:.4f} on 6 rows, 6 folds" in program("score", tmp_path / "b.json", new)[1]


def test_several_runs_count_alike(levels, program, tmp_path):
    (one, two), new = levels
    assert program("predict", one, two, new, tmp_path / "o.parquet")[0] == 0
    table = read_manifest(new)
    apart = [TrainedRun(run).predict(table) for run in (one, two)]
    for row in polars.read_parquet(tmp_path / "o.parquet").iter_rows(named=True):
        np.testing.assert_allclose(row["prediction"], (apart[0][row["id"]] + apart[1][row["id"]]) / 2, rtol=1e-6)
    assert blend_runs([one, two], tmp_path / "equal.json", equal=True)["score"] > 0
    assert read_blend(tmp_path / "equal.json").weights == [0.5, 0.5]


def test_blends_that_cannot_be(levels, program, tmp_path):
    (one, two), _ = levels
    for runs, wanted in {(one,): "a blend is of two runs or more, found 1", (tmp_path,): "is not a run"}.items():
        code, _, err = program("blend", *runs, "--out", tmp_path / "b.json")
        assert code == 2 and wanted in err and err.count("\n") == 1
    blend_runs([one, two], tmp_path / "b.json", equal=True)
    facts = json.loads((tmp_path / "b.json").read_text())
    for weights in ([-0.5, 1.5], [0.5, 0.6], [float("nan"), 1]):
        for entry, weight in zip(facts["runs"], weights, strict=True):
            entry["weight"] = weight
        (tmp_path / "bad.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match="expected numbers from 0 that add up to 1"):
            read_blend(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="is no blend file"):
        read_blend(tmp_path / "bad.json")


def test_runs_of_different_targets(levels, tmp_path):
    (one, _), _ = levels
    classes = train(tmp_path, small(write_rows(tmp_path), run="classes"))
    with pytest.raises(InputError, match="differ in the metric"):
        Ensemble([TrainedRun(one), TrainedRun(classes)])


def test_seeds_share_their_folds(program, tmp_path):
    plain = small(write_rows(tmp_path), run="many", folds={"kind": "kfold", "n": 2}, seed=4)
    (tmp_path / "c.yaml").write_text(write_config(plain))
    code, out, err = program("train", tmp_path / "c.yaml", "--root", tmp_path, "--seeds", "1,2")
    assert code == 0, err
    runs = [tmp_path / f"many_seed{seed}" for seed in (1, 2)]
    scores = [json.loads((run / "metrics.json").read_text())["out_of_fold"] for run in runs]
    assert f"{np.mean(scores):.4f}" in out and f"{np.std(scores):.4f}" in out
    one, two = (polars.read_parquet(run / "folds.parquet") for run in runs)
    assert one.equals(two)
    states = [(run / "fold0" / "last" / "model.safetensors").read_bytes() for run in runs]
    assert states[0] != states[1]
    for seeds in ("1,1", "one", ""):
        code, _, err = program("train", tmp_path / "c.yaml", "--root", tmp_path, "--seeds", seeds)
        assert code == 2 and "such as 0,1,2" in err


class Texts:
    """Stands for a run that predicts texts."""

    def __init__(self, votes: list[str]):
        self.found = {"r": votes}

    def votes(self, table, tta: bool, decoder=None) -> dict[str, list]:
        return self.found


def test_several_runs_of_texts_have_a_consensus_of_all_folds(monkeypatch):
    """The run with three folds alike is outvoted by four folds of another: folds vote, not runs."""
    monkeypatch.setattr("seqformer.ensemble.check_alike", lambda runs: None)
    found = Ensemble([Texts(["a b c"] * 3), Texts(["x y z"] * 4)]).predict(None)
    assert found == {"r": "x y z"}
