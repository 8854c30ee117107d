"""Which rows a fold of a run has seen: those it was trained on, and those that what it learned from was trained on."""

from pathlib import Path

INHERITED = "inherited.parquet"  # in a fold's folder, where it started from an earlier run or was taught by one


def rows_seen(fold: Path) -> set[str]:
    """Ids of all rows that a fold (its folder in a run's) has learned from, by itself or through earlier runs."""
    import polars

    folds = polars.read_parquet(fold.parent / "folds.parquet")
    validates = folds["fold"].cast(polars.String) == fold.name.removeprefix("fold")  # a full fit validates none
    seen = set(folds.filter(~validates)["id"].to_list())
    if (fold / INHERITED).is_file():
        seen |= set(polars.read_parquet(fold / INHERITED)["id"].to_list())
    return seen
