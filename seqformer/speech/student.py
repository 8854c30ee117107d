"""Noisy student training: each generation learns from the labels that the one before gave to unlabelled rows.

Source: Xie et al. 2020 (arXiv 1911.04252), for speech Park et al. 2020 (arXiv 2005.09629); what differs in the choice
of labels is said in ``speech.selection``. Fold k's rows are labelled by fold k's model of the generation before
alone, which has learned from fold k's training rows and from labels of such a model: nothing that fold k validates has
reached them, and ``seqformer.data.provenance`` refuses any that do not prove it.
"""

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.checkpoint import FILES, verify, write_file
from seqformer.config import build_config, changed_config
from seqformer.data.folds import folder_of
from seqformer.data.manifest import manifest_hash, read_manifest, write_manifest
from seqformer.data.targets import Units
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError, first_few
from seqformer.oof import read_folds
from seqformer.predict import TrainedRun, load_fold, load_targets, main_head, make_dataset, score
from seqformer.pseudo import rows_to_label, with_provenance
from seqformer.speech.selection import balanced, in_pace, length_scores
from seqformer.train.crossval import train_run, write_table
from seqformer.train.log import RunLog
from seqformer.transcripts import frame_log_probs

if TYPE_CHECKING:
    import polars

REASONS = ("score", "pace", "tokens")  # why a label is left out


@dataclass(frozen=True)
class Choice:
    """Which labels a generation learns from.

    ``threshold``: the least score, see ``length_scores``, of generation 1, 2, ..., the last one of all after too.
    ``pace``: units a second may leave those of the fold's own texts by this factor. ``balance``: the least share of the
    rows to leave for the sake of the tokens, 1 for all of them.
    """

    threshold: Sequence[float] = (0.0, -0.5, -1.0)
    pace: float = 1.5
    balance: float = 0.9


def train_generations(
    plain: dict[str, Any],
    root: Path,
    unlabelled: Path,
    generations: int,
    decoder: BeamDecoder,
    choice: Choice,
    lm: Path | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train generation 0, the run of a config, and ``<run>_g1``, ``<run>_g2``, ...; facts of each.

    Finished work is skipped, down to the folds whose rows are labelled. ``lm`` is the file the decoder's model is of.
    A target column of the unlabelled rows, where there is one, only tells how true labels are. Raises InputError on a
    faulty config or manifest, or when a generation was begun with other settings.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("seqformer student is one process; start it without a launcher, and use its folds' devices")
    column = main_head(build_config(plain).head)[1]
    table = read_manifest(unlabelled)
    truth = {} if column not in table.columns else dict(zip(table["id"], table[column], strict=True))
    table = table.drop(column, strict=False)
    found = [{"generation": 0, **_scored(train_run(_generation(plain, 0), root, quiet=quiet))}]
    for number in range(1, generations + 1):
        teacher = TrainedRun(root / _generation(plain, number - 1)["run"])
        folder = root / f"{plain['run']}_g{number}"
        settings = _settings(teacher, unlabelled, decoder, choice, number, lm)
        facts = label_generation(teacher, table, truth, decoder, settings, folder)
        student = _generation(plain, number, folder / "pseudo.parquet")
        found.append({"generation": number, **facts, **_scored(train_run(student, root, quiet=quiet))})
    with RunLog(None, quiet) as log:
        _report(log, plain["run"], found)
    return found


def _generation(plain: dict[str, Any], number: int, labels: Path | None = None) -> dict[str, Any]:
    """The config of a generation: that of the run, for a student with its labels and the changes of its number."""
    changes, plain = plain.get("student") or [], {key: value for key, value in plain.items() if key != "student"}
    if not number:
        return plain
    plain = changed_config(plain, changes[min(number, len(changes)) - 1] if changes else {})
    plain["run"] = f"{plain['run']}_g{number}"
    if labels is not None:
        plain["data"] = plain["data"] | {"pseudo": [*(plain["data"].get("pseudo") or []), str(labels)]}
    return copy.deepcopy(plain)


def _scored(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"metric": metrics["metric"], "out_of_fold": metrics.get("out_of_fold")}


def _settings(
    teacher: TrainedRun, unlabelled: Path, decoder: BeamDecoder, choice: Choice, number: int, lm: Path | None
) -> dict[str, Any]:
    """All that decides about the labels of a generation."""
    given = {} if decoder.model is None else {"weight": decoder.weight, "bonus": decoder.bonus}
    checkpoints = {name: verify(teacher.folder / name / teacher.config.train.select) for name in teacher.names}
    return given | {
        "beam": decoder.beam,
        "teacher": {name: state and state["files"][FILES[0]] for name, state in checkpoints.items()},
        "rows": manifest_hash(str(unlabelled)),
        "lm": None if lm is None else hashlib.sha256(lm.read_bytes()).hexdigest(),
        "threshold": choice.threshold[min(number, len(choice.threshold)) - 1],
        "pace": choice.pace,
        "balance": choice.balance,
    }


def label_generation(
    teacher: TrainedRun,
    table: "polars.DataFrame",
    truth: dict[str, str],
    decoder: BeamDecoder,
    settings: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Label the rows by each fold of the teacher, write ``folder/pseudo.parquet``, and return what is known of it.

    Beside it ``labels_<fold>.parquet`` holds every label with its score and why it was left out, ``student.json`` the
    settings and facts. Raises InputError when they were begun with other settings.
    """
    import polars

    known = _read_facts(folder, settings)
    if known is not None:
        return known
    kept, labelled = [], []
    for name, asked, proof in rows_to_label(teacher, table):
        path = folder / f"labels_{folder_of(name)}.parquet"
        if not path.is_file():
            write_table(choose(teacher, name, asked, decode_rows(teacher, name, asked, decoder), settings), path)
        labels = polars.read_parquet(path)
        labelled.append(labels)
        rows = asked.join(labels.filter(polars.col("left_out").is_null()), on="id", maintain_order="left")
        kept.append(with_provenance(teacher, name, rows.drop("left_out", "units"), proof))
    rows, every = polars.concat(kept), polars.concat(labelled)
    if not rows.height:
        left = ", ".join(f"{count} for their {why}" for why, count in _counts(every).items() if count)
        raise InputError(f"{folder}: no label is left of {every.height}: {left}; lower --threshold, raise --pace")
    write_manifest(rows, folder / "pseudo.parquet")
    facts = {"labels": every.height, "kept": rows.height, **_counts(every)}
    facts["hours"] = float((rows["frames"] / rows["rate"]).sum() / 3600) if "rate" in rows.columns else None
    column = main_head(teacher.config.head)[1]
    facts |= {
        "error_kept": _error(teacher, rows["labelled_id"], rows[column], truth),
        "error_all": _error(teacher, every["id"], every[column], truth),
    }
    write_file(folder / "student.json", json.dumps({"settings": settings, "facts": facts}, indent=1) + "\n")
    return facts


def _read_facts(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of labels that are finished; else None, and the settings are noted."""
    path = folder / "student.json"
    if path.is_file():
        try:
            known = json.loads(path.read_text())
            before, facts = known["settings"], known["facts"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; remove {folder} to label again") from error
        now = json.loads(json.dumps(settings))
        other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if other:
            raise InputError(f"{folder} was begun with other settings: {first_few(other)}; choose another run name")
        return facts
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"settings": settings, "facts": None}, indent=1) + "\n")
    return None


def decode_rows(run: TrainedRun, name: str, table: "polars.DataFrame", decoder: BeamDecoder) -> "polars.DataFrame":
    """By one fold: id, the text in the column of the run's target, its score and its units (list), as rows come."""
    import polars

    model, targets = load_fold(run.folder / folder_of(name), run.config, run.device)
    head, column = main_head(run.config.head)
    encoder = targets.encoders[column]
    if not isinstance(encoder, Units):
        raise InputError(f"{run.folder} predicts no texts; students of other answers: seqformer pseudo, data.pseudo")
    dataset = make_dataset(run.config, table, None, getattr(model.frontend, "rate", None))
    if [str(row_id) for row_id in dataset.ids] != table["id"].to_list():
        raise InputError(f"student: dataset {run.config.dataset['name']!r} makes its examples up; labels are of rows")
    found = {}
    for ids, (heard,) in frame_log_probs([model], dataset, run.config.data, head):
        texts = decoder.hypotheses(heard, encoder.tokenizer, model.search(head))
        found |= {row_id: texts[0] for row_id, texts in zip(ids, texts, strict=True)}
    best = [found[row_id] for row_id in table["id"]]
    return polars.DataFrame(
        {
            "id": table["id"],
            column: [encoder.tokenizer.decode(text.units) for text in best],
            "score": [float(text.score) for text in best],
            "units": polars.Series([list(map(int, text.units)) for text in best], dtype=polars.List(polars.Int64)),
        }
    )


def choose(
    run: TrainedRun, name: str, table: "polars.DataFrame", labels: "polars.DataFrame", settings: dict[str, Any]
) -> "polars.DataFrame":
    """The labels of one fold with ``confidence`` (see ``length_scores``) and ``left_out``: why, or None.

    What is usual is that of the fold's own training rows.
    """
    import polars

    own, column = training_rows(run, name), main_head(run.config.head)[1]
    encoder = load_targets(run.folder / folder_of(name)).encoders[column]
    usual = [encoder.encode(text) for text in own[column]]
    units = labels["units"].list.len().to_numpy()
    confidence = length_scores(labels["score"].to_numpy(), units)
    timed = "rate" in own.columns and "rate" in table.columns
    pace = units / _durations(table, timed)
    usual_pace = np.array([len(text) for text in usual]) / _durations(own, timed)
    silent = np.array([not text for text in labels[column]])
    reason = np.full(labels.height, None, dtype=object)
    reason[confidence < settings["threshold"]] = "score"
    reason[silent | ~in_pace(pace, usual_pace[usual_pace > 0], settings["pace"])] = "pace"
    kept = np.flatnonzero([why is None for why in reason])
    counts = np.array([np.bincount(labels["units"][int(row)].to_numpy(), minlength=encoder.size) for row in kept])
    if settings["balance"] < 1 and len(kept):
        wanted = np.bincount(np.concatenate(usual), minlength=encoder.size)
        stay = balanced(counts, wanted, least=int(np.ceil(settings["balance"] * len(kept))))
        reason[kept[~stay]] = "tokens"
    return labels.with_columns(
        confidence=polars.Series(confidence), left_out=polars.Series(reason.tolist(), dtype=polars.String)
    )


def training_rows(run: TrainedRun, name: str) -> "polars.DataFrame":
    """The labelled rows that a fold is trained on."""
    rows = read_folds(run)
    ids = rows["id"] if name == "full" else rows["id"].filter(rows["fold"] != int(name))
    table = read_manifest(run.config.data.manifest, run.config.data.where)
    return table.filter(table["id"].is_in(ids.implode()))


def _durations(table: "polars.DataFrame", timed: bool) -> np.ndarray:
    """(rows,) seconds, or frames where a rate is not known of both sides."""
    return (table["frames"] / table["rate"]).to_numpy() if timed else table["frames"].to_numpy()


def _counts(labels: "polars.DataFrame") -> dict[str, int]:
    return {why: int((labels["left_out"] == why).sum()) for why in REASONS}


def _error(run: TrainedRun, ids: "polars.Series", texts: "polars.Series", truth: dict[str, str]) -> float | None:
    """The run's metric of labels against what is true of the rows, where anything is known."""
    pairs = [(text, truth[row]) for row, text in zip(ids, texts, strict=True) if truth.get(row) is not None]
    return score(run.config.metric, *map(list, zip(*pairs, strict=True))) if pairs else None


def _report(log: RunLog, name: str, found: list[dict[str, Any]]) -> None:
    """One table: labels kept, left out for each reason, their hours, and the metric of labels and of students."""
    formats = {"hours": ".2f", "error_kept": ".4f", "error_all": ".4f", "out_of_fold": ".4f"}
    keys = ("generation", "kept", *REASONS, *formats)
    rows = [["" if one.get(key) is None else format(one[key], formats.get(key, "")) for key in keys] for one in found]
    head = ["", "kept", *REASONS, "hours", "of kept", "of all", "out of fold"]
    log.table(f"{name}: labels by generation, and {found[0]['metric']}", head, rows)
