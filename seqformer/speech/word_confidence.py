"""Confidences of words against what was right, on out-of-fold rows: their calibration, and a report of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from seqformer.checkpoint import write_file
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.confidence import Calibration, logit, same_words, word_confidences
from seqformer.errors import InputError
from seqformer.predict import TrainedRun
from seqformer.speech.language_models import refuse_seen
from seqformer.speech.tune_lm import read_lm, search_rows, validated_rows

BINS = 10


def calibrate_words(run: TrainedRun, lm: Path | None, out: Path, beam: int, rows: int | None = None) -> dict[str, Any]:
    """Fit a calibration of word confidences, write it and its reliability to a file, and return what that holds.

    Each row is read by the fold that was not trained on it, with the language model or tuned file ``lm``. ``before``
    and ``after`` are expected calibration errors, the latter of each half of the rows by a calibration fitted on the
    other. A picture lies beside the file where matplotlib is installed. Raises InputError as ``tune_lm`` does, or
    when all words are right, or none.
    """
    confidence, right, row = [], [], []
    for fold in validated_rows(run, rows):
        model, settings = read_lm(lm, fold.ids) if lm else (None, {})
        for one in filter(None, (model, settings.get("rescorer"))):
            refuse_seen(one, lm, run, fold.fold)
        found = search_rows(fold, BeamDecoder(model, **({"beam": beam} | settings)))
        for number, (item, truth) in enumerate(zip(found, fold.truth, strict=True)):
            words = word_confidences(item, fold.tokenizer)
            confidence += [value for _, value in words]
            right += same_words([word for word, _ in words], truth.split()).tolist()
            row += [f"{fold.fold}:{number}"] * len(words)
    values, right = np.array(confidence), np.array(right)
    _, half = np.unique(row, return_inverse=True)
    half = np.random.default_rng(run.config.seed).permutation(half.max(initial=0) + 1)[half] % 2
    after = np.empty(len(values))
    for side in (0, 1):
        after[half == side] = fit(values[half != side], right[half != side])(values[half == side])
    calibration = fit(values, right)
    facts = calibration._asdict() | {"words": len(values), "right": float(right.mean())}
    facts |= {"before": calibration_error(values, right), "after": calibration_error(after, right)}
    facts |= {
        "lm": str(lm) if lm else None,
        "table": reliability(values, right),
        "table_after": reliability(after, right),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps(facts, indent=1) + "\n")
    draw(facts, out.with_suffix(".png"))
    return facts


def fit(confidence: np.ndarray, right: np.ndarray) -> Calibration:
    """Platt's calibration (logistic regression). Raises InputError when there are no two kinds of words."""
    from sklearn.linear_model import LogisticRegression

    if not 0 < right.sum() < len(right):
        raise InputError(
            f"{int(right.sum())} of {len(right)} words are right; a calibration takes both kinds, in each half"
        )
    model = LogisticRegression(C=1e3).fit(logit(confidence)[:, None], right)
    return Calibration(float(model.coef_[0, 0]), float(model.intercept_[0]))


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Of each tenth of the confidences that has any: words, their mean confidence and the share that is right."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [{"from": number / BINS, "words": int((place == number).sum()),
             "confidence": float(confidence[place == number].mean()), "right": float(right[place == number].mean())}
            for number in np.unique(place).tolist()]  # fmt: skip


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean over words of the gap between confidence and share of their tenth."""
    table = reliability(confidence, right)
    return sum(one["words"] * abs(one["confidence"] - one["right"]) for one in table) / len(confidence)


def draw(facts: dict[str, Any], path: Path) -> bool:
    """The reliability diagram; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="confidence of a word", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, table in (("before", "table"), ("after", "table_after")):
        x, y = ([one[side] for one in facts[table]] for side in ("confidence", "right"))
        axes.plot(x, y, marker="o", label=f"{name}: {facts[name]:.3f}")
    axes.legend(title="calibration error")
    figure.savefig(path, dpi=120)
    return True


def read_calibration(path: Path) -> Calibration:
    """What ``calibrate_words`` wrote. Raises InputError when the file is something else."""
    try:
        found = json.loads(path.read_text())
        return Calibration(float(found["slope"]), float(found["intercept"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of seqformer lm calibrate: {error}") from error
