"""Weights and bonuses of language models, chosen on out-of-fold rows only, and the file that remembers them."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqformer.checkpoint import write_file
from seqformer.data.manifest import read_manifest
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.prefix_beam import Hypothesis
from seqformer.errors import InputError, first_few
from seqformer.oof import require_whole
from seqformer.predict import TrainedRun, load_fold, main_head, make_dataset, reader_of, score, truth_of
from seqformer.registry import lookup
from seqformer.speech.language_models import hash_model, open_model, refuse_seen
from seqformer.transcripts import frame_log_probs

BATCH = 32  # items of one search


class Grid(NamedTuple):
    """Values to try, of both passes; those of a pass without a model are not read."""

    weights: Sequence[float] = (0.5,)
    bonuses: Sequence[float] = (0.0,)
    rescore_weights: Sequence[float] = (0.3,)
    rescore_bonuses: Sequence[float] = (0.0,)


@dataclass(frozen=True)
class Rows:
    """Validated rows of a fold: their ids, what its model heard in each, its tokenizer and search, the true texts."""

    fold: str
    ids: list[str]
    heard: list[np.ndarray]
    tokenizer: Any
    search: Callable | None
    truth: list[str]


def tune_lm(
    run: TrainedRun,
    place: Path | None,
    out: Path,
    grid: Grid,
    decoder: BeamDecoder,
    rows: int | None = None,
    rescore: Path | None = None,
) -> dict[str, Any]:
    """Score every choice of weights and bonuses, write the best and all of them to a file, and return what it holds.

    ``place`` is the language model of the search, ``rescore`` that of the second pass, one of them at least. Each row
    is read by the fold that was not trained on it, and by a fold of a neural language model that was not either; of
    ``rows`` as many are drawn, by the run's seed. What other texts a model was trained on is not known here, and must
    not be those of the rows. ``without`` is the score of the search alone, ``fused`` the best of the first pass. Raises
    InputError when no fold has validated rows, the run predicts no texts, or a language model has seen the rows.
    """
    folds, tried = validated_rows(run, rows), []
    for fold in folds:
        for one in filter(None, (place, rescore)):
            refuse_seen(open_model(one, fold.ids), one, run, fold.fold)
    models = [open_model(place, fold.ids) if place else None for fold in folds]
    rescorers = [open_model(rescore, fold.ids) if rescore else None for fold in folds]
    said: list[dict[str, float]] = [{} for _ in folds]
    # Where there is no model of a pass its weight and bonus change nothing.
    first = list(itertools.product(grid.weights, grid.bonuses)) if place else [(0.5, 0.0)]
    for weight, bonus in first:
        one = replace(decoder, weight=weight, bonus=bonus)
        found = [search_rows(fold, replace(one, model=model)) for fold, model in zip(folds, models, strict=True)]
        tried.append({"weight": weight, "bonus": bonus, "score": score_rows(run, folds, found)})
        if rescore:
            ask_rescorers(folds, found, rescorers, said)
            for weights in itertools.product(grid.rescore_weights, grid.rescore_bonuses):
                named = dict(zip(("rescore_weight", "rescore_bonus"), weights, strict=True))
                second = replace(one, **named)
                moved = [second.second_pass(*args) for args in zip(found, _tokenizers(folds), said, strict=True)]
                tried.append({"weight": weight, "bonus": bonus} | named | {"score": score_rows(run, folds, moved)})
    better = max if lookup("metric", run.config.metric["name"]).higher_is_better else min
    best, fused = (
        better(some, key=lambda one: one["score"])
        for some in ([one for one in tried if not rescore or "rescore_weight" in one],
                     [one for one in tried if "rescore_weight" not in one])
    )  # fmt: skip
    alone = [search_rows(fold, decoder) for fold in folds]
    facts = {"metric": run.config.metric["name"], "without": score_rows(run, folds, alone), "fused": fused["score"]}
    facts |= {"rows": sum(len(fold.ids) for fold in folds), "beam": decoder.beam}
    found = best | facts | _noted("lm", place, out) | _noted("rescore", rescore, out) | {"grid": tried}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps(found, indent=1) + "\n")
    return found


def _noted(name: str, place: Path | None, out: Path) -> dict[str, Any]:
    """Where a model is, as seen from the file, and what must not change."""
    if place is None:
        return {name: None}
    seen = Path(os.path.relpath(place.resolve(), out.parent.resolve())).as_posix()
    return {name: seen, f"{name}_sha256": hash_model(place)}


def _tokenizers(folds: list[Rows]) -> list:
    return [fold.tokenizer for fold in folds]


def validated_rows(run: TrainedRun, rows: int | None) -> list[Rows]:
    """Of each fold the rows that it validates, all or as many as are drawn of all folds."""
    import polars

    known = require_whole(run).filter(polars.col("fold").cast(polars.String).is_in(_numbers(run)))
    if not known.height:
        raise InputError(f"{run.folder} has a fold full only: no row is out of fold to choose weights on")
    if rows is not None and rows < known.height:
        chosen = np.random.default_rng(run.config.seed).choice(known.height, rows, replace=False)
        known = known[np.sort(chosen)]
    table = read_manifest(run.config.data.manifest, run.config.data.where).join(known, on="id", suffix="_of_run")
    lost = known.join(table, on="id", how="anti")["id"]
    if len(lost):
        raise InputError(f"{run.config.data.manifest} has lost {len(lost)} rows of {run.folder}: {first_few(lost)}")
    fold = "fold_of_run" if "fold_of_run" in table.columns else "fold"
    parts = ((name, table.filter(table[fold].cast(polars.String) == name).drop(fold)) for name in _numbers(run))
    return [_read(run, name, part) for name, part in parts if part.height]


def _numbers(run: TrainedRun) -> list[str]:
    return [name.removeprefix("fold") for name in run.names if name != "full"]


def _read(run: TrainedRun, name: str, table) -> Rows:
    model, targets = load_fold(run.folder / f"fold{name}", run.config, run.device)
    head, column = main_head(run.config.head)
    if reader_of(targets.encoders[column]) is None:
        raise InputError(f"{run.folder} predicts no texts; a language model is for texts")
    dataset = make_dataset(run.config, table, targets, getattr(model.frontend, "rate", None))
    found = {}
    for ids, (heard,) in frame_log_probs([model], dataset, run.config.data, head):
        found |= dict(zip(ids, heard, strict=True))
    ids, truth = [str(row_id) for row_id in dataset.ids], truth_of(dataset, targets, column)
    reader = reader_of(targets.encoders[column])
    return Rows(name, ids, [found[row_id] for row_id in ids], reader, model.search(head), truth)


def search_rows(fold: Rows, decoder: BeamDecoder) -> list[list[Hypothesis]]:
    """What a decoder finds in each row."""
    found: list[list[Hypothesis]] = [[] for _ in fold.ids]
    order = sorted(range(len(fold.ids)), key=lambda row: len(fold.heard[row]))  # alike in length: little padding
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        texts = decoder.hypotheses([fold.heard[row] for row in part], fold.tokenizer, fold.search)
        for row, hypotheses in zip(part, texts, strict=True):
            found[row] = hypotheses
    return found


def ask_rescorers(folds: list[Rows], found: list, rescorers: list, said: list[dict[str, float]]) -> None:
    """Note log p of each text that a search found, where it is not known yet."""
    for fold, items, rescorer, known in zip(folds, found, rescorers, said, strict=True):
        texts = {fold.tokenizer.decode(one.units) for item in items for one in item}
        new = sorted(texts - known.keys())
        known.update(zip(new, rescorer.text_log_probs(new), strict=True))


def score_rows(run: TrainedRun, folds: list[Rows], found: list[list[list[Hypothesis]]]) -> float:
    """The run's metric of the first text of each row, over all folds."""
    texts = [fold.tokenizer.decode(item[0].units) for fold, items in zip(folds, found, strict=True) for item in items]
    return score(run.config.metric, texts, [text for fold in folds for text in fold.truth])


def read_lm(path: Path, rows: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """The model at a place, or that of a file of ``tune_lm`` (None without) and what else it says of a BeamDecoder.

    Of a neural model a fold that was trained on none of ``rows``. Raises InputError when the file is damaged, or a
    model changed after it was tuned.
    """
    if path.suffix != ".json":
        return open_model(path, rows), {}
    try:
        found = json.loads(path.read_text())
        settings = {"weight": float(found["weight"]), "bonus": float(found["bonus"]), "beam": int(found["beam"])}
        places = {name: (path.parent / found[name], found[f"{name}_sha256"])
                  for name in ("lm", "rescore") if found[name] is not None}  # fmt: skip
        if "rescore" in places:
            settings |= {name: float(found[name]) for name in ("rescore_weight", "rescore_bonus")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of seqformer lm tune: {error}") from error
    for place, wanted in places.values():
        if not place.exists() or hash_model(place) != wanted:
            raise InputError(f"{place} changed after {path} was made; tune again")
    models = {name: open_model(place, rows) for name, (place, _) in places.items()}
    if "rescore" in models:
        settings["rescorer"] = models["rescore"]
    return models.get("lm"), settings
