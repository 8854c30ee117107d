"""P3: no group straddles folds and every row is validated exactly once, on a thousand random tables of every kind."""

import numpy as np
import polars
import pytest

from seqformer import InputError
from seqformer.data.folds import assign_folds, fold_names, split_rows
from seqformer.train import crossval

TABLES = 1000


def random_table(rng: np.random.Generator) -> polars.DataFrame:
    """Rows with a group of very uneven size and a class, as text, numbers or categories."""
    rows = int(rng.integers(12, 90))
    groups = rng.integers(0, rng.integers(4, 25), rows)
    groups[: rows // int(rng.integers(2, 9))] = 0  # one group holds up to half of all rows
    classes = rng.geometric(rng.uniform(0.2, 0.9), rows)
    table = polars.DataFrame({"id": [f"r{row}" for row in range(rows)], "group": groups, "label": classes})
    kind = [polars.Int64, polars.String, polars.Categorical][int(rng.integers(3))]
    text = table.with_columns(polars.col("group", "label").cast(polars.String))
    return text.with_columns(polars.col("group", "label").cast(kind))


def check_partition(folds: np.ndarray, n: int) -> None:
    """Every row is validated in one fold and trained on in all others, by what the trainer is given."""
    names = fold_names(folds, "all")
    assert names == [str(fold) for fold in range(n)]
    validated = np.zeros(len(folds), int)
    for name in names:
        train, valid = split_rows(folds, name)
        assert sorted([*train, *valid]) == list(range(len(folds)))
        validated[valid] += 1
    assert (validated == 1).all()


def straddling(groups: polars.Series, folds: np.ndarray) -> list:
    """Groups whose rows lie in more than one fold, found one by one."""
    seen: dict = {}
    return [group for group, fold in zip(groups.to_list(), folds, strict=True) if seen.setdefault(group, fold) != fold]


def test_random_tables_of_every_kind():
    rng = np.random.default_rng(0)
    done = dict.fromkeys(("kfold", "stratified", "group", "stratified_group", "column"), 0)
    for seed in range(TABLES):
        table, n = random_table(rng), int(rng.integers(2, 6))
        few_groups, few_labels = table["group"].n_unique() < n, table["label"].value_counts()["count"].max() < n
        arguments = {
            "kfold": {},
            "stratified": {"by": "label"},
            "group": {"by": "group"},
            "stratified_group": {"by": "group", "stratify": "label"},
        }
        for kind, columns in arguments.items():
            if ("group" in kind and few_groups) or ("stratified" in kind and few_labels):
                with pytest.raises(InputError, match=r"^folds: n"):
                    assign_folds(table, kind, n, seed=seed, **columns)
                continue
            folds = assign_folds(table, kind, n, seed=seed, **columns)
            check_partition(folds, n)
            done[kind] += 1
            if "group" in kind:
                assert straddling(table["group"], folds) == []
            if kind == "stratified":  # each class is shared out to within one row of the exact share
                for label in table["label"].unique().to_list():
                    of_class = folds[(table["label"] == label).to_numpy()]
                    counts = np.bincount(of_class, minlength=n)
                    assert np.abs(counts - len(of_class) / n).max() <= 1
        given = rng.integers(0, n, table.height)
        given[:n] = range(n)
        folds = assign_folds(table.with_columns(fold=given), "column", by="fold")
        np.testing.assert_array_equal(folds, given)
        check_partition(folds, n)
        done["column"] += 1
    assert min(done.values()) > 0.8 * TABLES, done


def test_stratified_groups_keep_the_shares():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), 5)
    table = polars.DataFrame(
        {"id": [str(row) for row in range(1000)], "group": groups, "label": rng.random(1000) < 0.2}
    )
    folds = assign_folds(table, "stratified_group", 5, by="group", stratify="label")
    shares = [table["label"].to_numpy()[folds == fold].mean() for fold in range(5)]
    assert np.ptp(shares) < 0.02 and np.ptp(np.bincount(folds)) <= 25
    assert straddling(table["group"], folds) == []


def table_of(**columns) -> polars.DataFrame:
    rows = len(next(iter(columns.values())))
    return polars.DataFrame({"id": [f"r{row}" for row in range(rows)], **columns})


def test_seed_decides():
    table = table_of(group=[str(row // 3) for row in range(60)])
    for kind, by in (("kfold", None), ("group", "group")):
        same = [assign_folds(table, kind, 5, by=by, seed=3) for _ in range(2)]
        np.testing.assert_array_equal(*same)
        assert (same[0] != assign_folds(table, kind, 5, by=by, seed=4)).any()


def test_rows_of_minus_one_are_always_trained_on():
    folds = assign_folds(table_of(part=[0, -1, 1, -1, 0, 1]), "column", by="part")
    for name in fold_names(folds, "all"):
        train, valid = split_rows(folds, name)
        assert {1, 3} <= set(train.tolist()) and not {1, 3} & set(valid.tolist())
    train, valid = split_rows(folds, "full")
    assert list(train) == list(range(6)) and not len(valid)


@pytest.mark.parametrize("dtype", [polars.Int8, polars.UInt16, polars.UInt64])
def test_column_of_any_whole_numbers(dtype):
    folds = assign_folds(table_of(part=polars.Series([0, 1, 2, 0], dtype=dtype)), "column", by="part")
    assert folds.dtype == np.int64 and folds.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "values, valid",
    [(["a", "b", "b", "c"], ["b"]), ([1, 2, 2, 3], [2]), ([True, False, False, True], [False])],
)
def test_column_values_to_validate_on(values, valid):
    for series in (polars.Series(values), polars.Series(values).cast(polars.String).cast(polars.Categorical)):
        assert assign_folds(table_of(part=series), "column", by="part", valid=valid).tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "kfold", "n": 1}, "n is 1, with 6 rows"),
        ({"kind": "kfold", "n": 7}, "n is 7, with 6 rows"),
        ({"kind": "group", "n": 4, "by": "g"}, "n is 4, with 3 values of 'g'"),
        ({"kind": "group", "n": 2}, "kind 'group' needs by"),
        ({"kind": "stratified_group", "n": 2, "by": "g"}, "needs by and stratify: stratify is not given"),
        ({"kind": "group", "n": 2, "by": "speeker"}, "no column 'speeker'; did you mean 'speaker'?"),
        ({"kind": "group", "n": 2, "by": "hole"}, "column 'hole' is empty for r1, r4"),
        ({"kind": "group", "n": 2, "by": "list"}, "column 'list' holds List"),
        ({"kind": "stratified", "n": 4, "by": "g"}, "n_splits=4 cannot be greater than the number of members"),
        ({"kind": "groups", "n": 2, "by": "g"}, "unknown kind 'groups'; did you mean 'group'?"),
        ({"kind": "column", "by": "speaker"}, "column 'speaker' holds String; whole numbers"),
        ({"kind": "column", "by": "gap"}, "column 'gap' holds 0, 2; expected 0, 1, ..."),
        ({"kind": "column", "by": "none"}, "column 'none' holds only -1"),
        (
            {"kind": "column", "by": "speaker", "valid": ["ann", "bop"]},
            "no row has speaker = 'bop'; did you mean 'bob'?",
        ),
        ({"kind": "column", "by": "speaker", "valid": []}, "valid is empty"),
    ],
)
def test_refused(arguments, message):
    table = table_of(
        g=[1, 1, 2, 2, 3, 3],
        speaker=["ann", "ann", "bob", "bob", "cid", "cid"],
        hole=["a", None, "b", "b", None, "c"],
        list=[[1], [2], [3], [4], [5], [6]],
        gap=[0, 0, 2, 2, -1, -1],
        none=[-1] * 6,
    )
    with pytest.raises(InputError) as caught:
        assign_folds(table, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_which_folds_a_run_trains():
    folds = np.array([0, 1, 2, -1])
    assert fold_names(folds, "all") == ["0", "1", "2"]
    assert fold_names(folds, 2) == ["2"] and fold_names(folds, "full") == ["full"]
    for wrong in (3, -1, "some"):
        with pytest.raises(InputError, match="expected 0 to 2, 'all' or 'full'"):
            fold_names(folds, wrong)
    with pytest.raises(InputError, match="fold 0: 0 rows to train on and 4"):
        split_rows(np.zeros(4, int), "0")


@pytest.mark.parametrize("changes, wanted", [({}, 7), ({"folds__seed": 3}, 3), ({"folds__seed": 0}, 0)])
def test_a_seed_of_its_own_splits_runs_of_several_seeds_alike(tiny, tmp_path, monkeypatch, changes, wanted):
    def noted(*arguments, seed: int, **keywords):
        raise InputError(f"split by seed {seed}")

    monkeypatch.setattr(crossval, "assign_folds", noted)
    with pytest.raises(InputError, match=f"split by seed {wanted}$"):
        crossval.train_run(tiny(**changes), tmp_path, quiet=True)
