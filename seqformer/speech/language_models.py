"""Language models as the command line names them: an ARPA file, or the folder of a run that learned texts."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from seqformer.data.lineage import rows_seen
from seqformer.data.provenance import trained_on
from seqformer.errors import InputError, first_few
from seqformer.lm.neural import NeuralLM
from seqformer.lm.ngram import NGram, read_arpa
from seqformer.oof import read_folds
from seqformer.predict import TrainedRun, load_fold, main_head

if TYPE_CHECKING:
    import polars


def open_model(place: str | Path, rows: Iterable[str] = ()) -> NGram | NeuralLM:
    """The model at a place; of a run the first finished fold that was trained on none of ``rows``, their ids.

    Raises InputError when there is none, or the run's head says nothing of texts.
    """
    if not Path(place).is_dir():
        return read_arpa(place)
    run, rows, known = TrainedRun(place), set(rows), set()
    head, column = main_head(run.config.head)
    for name in run.names:
        known = rows & rows_seen(run.folder / name)
        if not known:
            model, targets = load_fold(run.folder / name, run.config, run.device)
            return NeuralLM(model, head, targets.encoders[column])
    raise InputError(f"{place}: every fold was trained on some of the rows, such as {first_few(sorted(known))}")


def hash_model(place: Path) -> str:
    """SHA-256 of all that ``open_model`` may read at a place."""
    files = [place]
    if place.is_dir():
        run = TrainedRun(place, "cpu")
        files = [run.folder / name / run.config.train.select / "model.safetensors" for name in run.names]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def fold_texts(run: TrainedRun, name: str, table: "polars.DataFrame") -> tuple[list[str], str]:
    """The texts of a run's manifest that a fold may be trained on, and the fingerprint of their rows."""
    import polars

    folds = read_folds(run)
    trained = folds if name == "full" else folds.filter(polars.col("fold").cast(polars.String) != name)
    _, column = main_head(run.config.head)
    if column not in table.columns or table[column].dtype != polars.String:
        raise InputError(f"{run.folder} predicts no texts: there is none to train a language model on")
    texts = table.join(trained.select("id"), on="id", how="semi", maintain_order="left")[column].to_list()
    return texts, trained_on(folds["id"], folds["fold"].to_numpy(), name)


def refuse_seen(model: NGram | NeuralLM, place: Path, run: TrainedRun, name: str) -> None:
    """Raise InputError when an n-gram model was trained on texts of another fold's rows: ``lm train`` notes which."""
    folds = read_folds(run)
    noted = getattr(model, "rows", None)
    if noted is not None and noted != trained_on(folds["id"], folds["fold"].to_numpy(), name):
        raise InputError(
            f"{place} was trained on rows that fold {name} of {run.folder} validates, or on those of another run; "
            f"train it by: seqformer lm train {run.folder} {place} --fold {name}"
        )
