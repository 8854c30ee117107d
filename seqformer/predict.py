"""Predictions: of a dataset by one model, and of anything by the folds of a run together."""

import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import seqformer.data.texts  # noqa: F401  importing these two registers their names
from seqformer import metrics  # noqa: F401
from seqformer.checkpoint import load_weights, put_weights, verify
from seqformer.config import Data, Part, Run, build_config, read_config
from seqformer.data.dataset import VALID
from seqformer.data.folds import folder_of
from seqformer.data.lineage import rows_seen
from seqformer.data.loader import load_batches
from seqformer.data.sampler import plan_dataset
from seqformer.data.states import States, WordReader
from seqformer.data.targets import Targets, Units
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.consensus import consensus
from seqformer.errors import InputError, first_few
from seqformer.model import SequenceModel, create_model, head_parts
from seqformer.registry import lookup, parameter_types
from seqformer.transcripts import read_texts
from seqformer.tta import ChangedDataset, put_back

if TYPE_CHECKING:
    import polars

REMEMBERED = "backbone.json"  # in a fold's folder: the architecture of a backbone that came from a checkpoint
Predictions = dict[str, dict[str, Any]]  # head -> row id -> text, probabilities or values


def predict_dataset(
    model: SequenceModel, dataset, targets: Targets, data: Data, fabric=None, tta: list[Part] = (), seed: int = 0
) -> tuple[Predictions, float | None]:
    """Predict every example of a dataset, and the mean loss where it has targets (else None).

    Targets are decoded into what files hold: units become text. With ``fabric``, its processes share the work and all
    get all of it. With ``tta``, a config's list of transforms, each prediction is pooled from that of the row as it is
    and those of the row changed by each transform; the loss is that of the rows as they are.
    """
    found, loss = _predict(model, dataset, targets, data, fabric)
    changed = [ChangedDataset(dataset, part, variant, seed) for variant, part in enumerate(tta)]
    votes = [found, *(_predict(model, some, targets, data, fabric)[0] for some in changed)]
    if not changed:
        return found, loss
    return {
        name: {row: pool([vote[name][row] for vote in votes]) for row in rows} for name, rows in found.items()
    }, loss


def pool(votes: list) -> Any:
    """One prediction out of several: the mean of probabilities and values, the consensus of texts."""
    return consensus(votes) if isinstance(votes[0], str) else np.mean(votes, axis=0)


@torch.no_grad()
def _predict(model, dataset, targets: Targets, data: Data, fabric) -> tuple[Predictions, float | None]:
    world, rank = (fabric.world_size, fabric.global_rank) if fabric else (1, 0)
    device, frames = next(model.parameters()).device, dataset.frames(VALID)
    batches = plan_dataset(dataset, data, VALID, world=world)[rank::world]
    keys = [[(VALID, int(row)) for row in batch] for batch in batches]
    model.eval()
    found, losses = {name: {} for name in model.heads}, {}
    for rows, batch in zip(batches, load_batches(dataset, keys, data.workers), strict=True):
        batch, back = put_back(dataset, batch, frames[rows])
        predictions, loss = model.evaluate(batch.to(device))
        if loss is not None:  # by first id: processes in step may do a batch twice, and it counts once
            losses[batch.ids[0]] = float(loss), len(batch.ids)
        for name, values in predictions.items():
            encoder = targets.encoders[model.heads[name].target]
            values = back(values) if encoder.axes == "T" else values
            found[name] |= {row_id: encoder.decode(value) for row_id, value in zip(batch.ids, values, strict=True)}
    if world > 1:
        found, losses = _gather(found, losses, world)
    pairs = losses.values()
    return found, sum(value * items for value, items in pairs) / sum(items for _, items in pairs) if losses else None


def _gather(found: Predictions, losses: dict, world: int) -> tuple[Predictions, dict]:
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, (found, losses))
    merged, all_losses = {name: {} for name in found}, {}
    for share, part in shares:
        all_losses |= part
        for name, values in share.items():
            merged[name] |= values
    return merged, all_losses


def score(metric: dict[str, Any], predictions: list, truth: list) -> float:
    """A registered metric with its keywords, over all frames, or items with several values, that have a truth.

    The metric gets one row each; of several values in a row some may be NaN, not scored.
    """
    arguments = {key: value for key, value in metric.items() if key != "name"}
    if truth and np.ndim(truth[0]):
        # A prediction of frames has two axes (T, V), one of an item's values has one, as its truth.
        join = np.stack if np.ndim(predictions[0]) == 1 else np.concatenate
        flat, guess = join(truth), join(predictions)
        scored = flat >= 0 if np.issubdtype(flat.dtype, np.integer) else np.isfinite(flat)
        keep = scored.any(axis=1) if scored.ndim == 2 else scored
        predictions, truth = guess[keep], flat[keep]
    return lookup("metric", metric["name"])(predictions, truth, **arguments)


def truth_of(dataset, targets: Targets, column: str) -> list:
    """What the metric compares predictions of a dataset to, in its order."""
    values = [None] * len(dataset.ids) if column in targets.made else dataset.columns[column]
    return [targets.encoders[column].truth(value) for value in values]


def main_head(head: dict[str, Any]) -> tuple[str, str]:
    """The head that is scored and written, the only one or the first of several, and the manifest column it learns."""
    name, part = next(iter(head_parts(head).items()))
    return name, head_target(part)


def head_target(part: dict[str, Any]) -> str:
    """A head's ``target`` keyword, or the default of its class."""
    return part.get("target") or signature(lookup("head", part["name"])).parameters["target"].default


def made_targets(frontend: Part) -> dict[str, int]:
    """Targets that a frontend makes of its input, {name: how many classes}."""
    kind = lookup("frontend", frontend["name"])
    keywords = getattr(kind, "makes", {})
    return {name: frontend.get(word, signature(kind).parameters[word].default) for name, word in keywords.items()}


def reader_of(encoder):
    """What a decoder reads texts with: a target's tokenizer, or a search over words; None where it is no text."""
    return WordReader(encoder) if isinstance(encoder, States) else getattr(encoder, "tokenizer", None)


def build_model(config: Run, targets: Targets, folder: Path | None = None) -> SequenceModel:
    """The model of a config, each head as wide as its target asks.

    With the ``folder`` of a fold that has trained, the architecture that started from a checkpoint is the one
    remembered there: a run needs the checkpoint to begin with, and never again.
    """
    parts, backbone = head_parts(config.head), config.backbone
    if folder is not None and (folder / REMEMBERED).is_file():
        backbone = backbone | {"settings": json.loads((folder / REMEMBERED).read_text())}
    heads = {name: {"vocab": targets.encoders[head_target(part)].size} | part for name, part in parts.items()}
    model = create_model(config.frontend, backbone, heads)
    for head in model.heads.values():
        encoder = targets.encoders[head.target]
        if hasattr(head, "spellings") and isinstance(encoder, Units):
            head.spellings = encoder.tokenizer.spellings()
    return model


def make_dataset(config: Run, table: "polars.DataFrame", targets: Targets | None, rate: int | None, **given: Any):
    """The dataset of a config over rows of a manifest; audio is read at ``rate`` Hz, the frontend's."""
    arguments = {key: value for key, value in config.dataset.items() if key != "name"}
    dataset = lookup("dataset", config.dataset["name"])
    return dataset(table=table, targets=targets, rate=rate, seed=config.seed, **given, **arguments)


class TrainedRun:
    """A run folder: its config, and the model and targets of each finished fold.

    Raises InputError when the folder is no run or none of its folds is finished.
    """

    def __init__(self, folder: str | Path, device: str = "auto"):
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            raise InputError(f"{self.folder} is not a run: it has no config.yaml")
        self.config = build_config(read_config(self.folder / "config.yaml"), str(self.folder / "config.yaml"))
        self.names = sorted(path.parent.name for path in self.folder.glob("*/done.json"))
        if not self.names:
            raise InputError(f"{self.folder} has no finished fold; go on with: seqformer train")
        self.device = torch.device(
            "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        )

    @property
    def transcribes(self) -> bool:
        """Whether the run turns audio into text."""
        frontend = lookup("frontend", self.config.frontend["name"])
        encoder = load_targets(self.folder / self.names[0]).encoders[main_head(self.config.head)[1]]
        return isinstance(encoder, Units | States) and "rate" in parameter_types(frontend)

    def fold(self, name: str) -> SequenceModel:
        """The model of one finished fold (its number, or full), with the tokenizer of its main head.

        Raises InputError when there is no such fold.
        """
        folder = folder_of(name)
        if folder not in self.names:
            raise InputError(f"{self.folder} has no finished fold {name}; finished: {', '.join(self.names)}")
        model, targets = load_fold(self.folder / folder, self.config, self.device)
        encoder = targets.encoders[main_head(self.config.head)[1]]
        model.tokenizer = encoder.tokenizer if isinstance(encoder, Units) else None
        return model

    def folds(self) -> Iterator[tuple[SequenceModel, Targets]]:
        """Model, in eval mode on the device, and targets of each finished fold."""
        for name in self.names:
            yield load_fold(self.folder / name, self.config, self.device)

    def predict_fold(self, name: str, table: "polars.DataFrame", tta: bool = True) -> dict[str, Any]:
        """{row id: prediction of the main head} by one finished fold; ``tta``: as the config's ``tta`` says."""
        model, targets = load_fold(self.folder / name, self.config, self.device)
        dataset = make_dataset(self.config, table, None, getattr(model.frontend, "rate", None))
        parts = self.config.tta if tta else []
        found, _ = predict_dataset(model, dataset, targets, self.config.data, tta=parts, seed=self.config.seed)
        return found[main_head(self.config.head)[0]]

    def votes(self, table: "polars.DataFrame", tta: bool = True, decoder: BeamDecoder | None = None) -> dict[str, list]:
        """{row id: the prediction of each finished fold}, or what ``read_texts`` gives of them all with a decoder."""
        if decoder is not None:
            return self._read(table, decoder)
        found = [self.predict_fold(name, table, tta) for name in self.names]
        return {row_id: [fold[row_id] for fold in found] for row_id in found[0]}

    def _read(self, table: "polars.DataFrame", decoder: BeamDecoder) -> dict[str, list[str]]:
        models, targets = zip(*self.folds(), strict=True)
        head, column = main_head(self.config.head)
        tokenizers = [reader_of(one.encoders[column]) for one in targets]
        if tokenizers[0] is None:
            raise InputError(f"{self.folder} predicts no texts; a language model, hot words and a beam are for texts")
        dataset = make_dataset(self.config, table, None, getattr(models[0].frontend, "rate", None))
        return read_texts(models, tokenizers, dataset, self.config.data, head, decoder)

    def predict(
        self, table: "polars.DataFrame", tta: bool = True, decoder: BeamDecoder | None = None
    ) -> dict[str, Any]:
        """{row id: prediction of the main head}: probabilities and values averaged over folds, texts by consensus.

        With a ``decoder`` texts are read by its beam search, from the mean of the folds where they share a tokenizer.
        """
        return {row_id: pool(votes) for row_id, votes in self.votes(table, tta, decoder).items()}

    def score(
        self,
        table: "polars.DataFrame",
        seen: bool = False,
        tta: bool = True,
        decoder: BeamDecoder | None = None,
    ) -> tuple[str, float, int]:
        """Name and value of the run's metric on rows with a truth, and the number of examples.

        Raises InputError when a fold was trained on any of the rows, unless ``seen`` allows it.
        """
        self.check_scored(table, seen)
        return self.score_of(self.predict(table, tta, decoder), table)

    def check_scored(self, table: "polars.DataFrame", seen: bool = False) -> None:
        """Raise InputError unless the rows have a truth and, without ``seen``, no fold was trained on any of them."""
        column = main_head(self.config.head)[1]
        if column not in table.columns:
            raise InputError(f"the rows have no column {column!r} to score against")
        known = [] if seen else self.trained_on(table["id"])
        if known:
            raise InputError(
                f"{len(known)} rows were trained on ({first_few(known)}); score others, or allow it: --seen"
            )

    def score_of(self, found: dict[str, Any], table: "polars.DataFrame") -> tuple[str, float, int]:
        """What ``score`` gives, of predictions that are there already."""
        column = main_head(self.config.head)[1]
        model, targets = next(self.folds())
        dataset = make_dataset(self.config, table, targets, getattr(model.frontend, "rate", None))
        truth = truth_of(dataset, targets, column)
        values = [found[str(row_id)] for row_id in dataset.ids]
        return self.config.metric["name"], score(self.config.metric, values, truth), len(truth)

    def trained_on(self, ids: "polars.Series") -> list[str]:
        """Those of the row ids that at least one finished fold, or what it started from, was trained on."""
        seen = set().union(*(rows_seen(self.folder / name) for name in self.names))
        return [row_id for row_id in ids.to_list() if row_id in seen]


def load_fold(folder: Path, config: Run, device: torch.device) -> tuple[SequenceModel, Targets]:
    """Model and targets of one finished fold, from the checkpoint that its run selected."""
    targets = load_targets(folder)
    model = build_model(config, targets, folder)
    checkpoint = folder / config.train.select
    state = verify(checkpoint)
    if state is None:
        raise InputError(f"no intact checkpoint at {checkpoint}")
    if state["targets"] != targets.fitted_on:
        raise InputError(f"{folder / 'targets.json'} was fitted on other rows than {checkpoint} was trained on")
    put_weights(model, load_weights(checkpoint), checkpoint)
    return model.to(device).eval(), targets


def load_targets(folder: Path) -> Targets:
    """The targets of a fold. Raises InputError when their file is missing or damaged."""
    try:
        return Targets.from_json((folder / "targets.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'targets.json'} is missing or damaged: {error}") from error
