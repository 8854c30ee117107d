"""The weight and bonus of a language model, chosen on out-of-fold rows only, and the file that remembers them."""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seqformer.checkpoint import write_file
from seqformer.data.manifest import read_manifest
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError, first_few
from seqformer.lm.ngram import NGram, read_arpa
from seqformer.oof import require_whole
from seqformer.predict import TrainedRun, load_fold, main_head, make_dataset, reader_of, score, truth_of
from seqformer.registry import lookup
from seqformer.transcripts import frame_log_probs


def tune_lm(
    run: TrainedRun,
    place: Path,
    out: Path,
    weights: Sequence[float],
    bonuses: Sequence[float],
    decoder: BeamDecoder,
    rows: int | None = None,
) -> dict[str, Any]:
    """Score every pair of weight and bonus, write the best and all of them to a file, and return what it holds.

    Each row is read by the fold that was not trained on it; of ``rows`` as many are drawn, by the run's seed. The
    language model must not come from texts of the run's rows: what it was trained on is not known here. ``without`` is
    the score of the search alone. Raises InputError when no fold has validated rows, or the run predicts no texts.
    """
    model, folds = read_arpa(place), _validated(run, rows)
    better = max if lookup("metric", run.config.metric["name"]).higher_is_better else min
    tried = []
    for weight, bonus in itertools.product(weights, bonuses):
        one = replace(decoder, model=model, weight=weight, bonus=bonus)
        tried.append({"weight": weight, "bonus": bonus, "score": _score(run, folds, one)})
    found = better(tried, key=lambda one: one["score"]) | {
        "metric": run.config.metric["name"],
        "without": _score(run, folds, replace(decoder, model=None)),
        "rows": sum(len(truth) for _, _, truth in folds),
        "beam": decoder.beam,
        "lm": Path(os.path.relpath(place.resolve(), out.parent.resolve())).as_posix(),
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "grid": tried,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps(found, indent=1) + "\n")
    return found


def _validated(run: TrainedRun, rows: int | None) -> list[tuple[list, Any, list]]:
    """Of each fold: log-probabilities of its validated rows by its model, its tokenizer and the true texts."""
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


def _read(run: TrainedRun, name: str, table) -> tuple[list, Any, list]:
    model, targets = load_fold(run.folder / f"fold{name}", run.config, run.device)
    head, column = main_head(run.config.head)
    if reader_of(targets.encoders[column]) is None:
        raise InputError(f"{run.folder} predicts no texts; a language model is for texts")
    dataset = make_dataset(run.config, table, targets, getattr(model.frontend, "rate", None))
    found = {}
    for ids, (log_probs,) in frame_log_probs([model], dataset, run.config.data, head):
        found |= dict(zip(ids, log_probs, strict=True))
    log_probs = [found[str(row_id)] for row_id in dataset.ids]
    return log_probs, reader_of(targets.encoders[column]), truth_of(dataset, targets, column)


def _score(run: TrainedRun, folds: list[tuple[list, Any, list]], decoder: BeamDecoder, batch: int = 32) -> float:
    """The run's metric over the rows of all folds."""
    texts, truths = [], []
    for log_probs, tokenizer, truth in folds:
        order = sorted(range(len(log_probs)), key=lambda row: len(log_probs[row]))  # alike in length: little padding
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            texts += decoder.texts([log_probs[row] for row in part], tokenizer)
            truths += [truth[row] for row in part]
    return score(run.config.metric, texts, truths)


def read_lm(path: Path) -> tuple[NGram, dict[str, Any]]:
    """The model of an ARPA file or of a file of ``tune_lm``, and in the latter's case its weight, bonus and beam.

    Raises InputError when the file is damaged, or the model changed after it was tuned.
    """
    if path.suffix != ".json":
        return read_arpa(path), {}
    try:
        found = json.loads(path.read_text())
        settings = {"weight": float(found["weight"]), "bonus": float(found["bonus"]), "beam": int(found["beam"])}
        place, wanted = path.parent / found["lm"], found["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of seqformer lm tune: {error}") from error
    model = read_arpa(place)
    if hashlib.sha256(place.read_bytes()).hexdigest() != wanted:
        raise InputError(f"{place} changed after {path} was made; tune again")
    return model, settings
