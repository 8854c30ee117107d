"""Texts that a decoder reads from the frames of one or several models with a CTC or a transducer head."""

from collections.abc import Iterator, Sequence

import numpy as np

from seqformer.data.dataset import VALID
from seqformer.data.loader import load_batches
from seqformer.data.sampler import plan_dataset
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.model import SequenceModel

LogProbs = list[np.ndarray]  # of each item (T, vocab), float32; of a transducer (T, joint), what its search takes


def frame_log_probs(
    models: Sequence[SequenceModel], dataset, data, head: str
) -> Iterator[tuple[list[str], list[LogProbs]]]:
    """Batch by batch of a dataset: row ids, and what each model's ``head`` says of them."""
    keys = [[(VALID, int(row)) for row in batch] for batch in plan_dataset(dataset, data, VALID)]
    for batch in load_batches(dataset, keys, data.workers):
        batch = batch.to(next(models[0].parameters()).device)
        yield batch.ids, [[item.cpu().numpy() for item in model.heard(batch, head)] for model in models]


def read_texts(
    models: Sequence[SequenceModel], tokenizers: Sequence, dataset, data, head: str, decoder: BeamDecoder
) -> dict[str, list[str]]:
    """{row id: texts}: one, of the mean of the models' log-probabilities, where all have one tokenizer; else one each.

    Transducers say nothing of units but after others, so that there is no mean of theirs, and one text each. Rows of a
    dataset are read as they are, never changed as a config's ``tta`` says.
    """
    searches = [model.search(head) for model in models]
    alike = searches[0] is None and all(one.state() == tokenizers[0].state() for one in tokenizers)
    found = {}
    for ids, log_probs in frame_log_probs(models, dataset, data, head):
        voices = [mean_log_probs(log_probs)] if alike else log_probs
        texts = [decoder.texts(*parts) for parts in zip(voices, tokenizers, searches, strict=False)]
        found |= dict(zip(ids, map(list, zip(*texts, strict=True)), strict=True))
    return found


def mean_log_probs(log_probs: list[LogProbs]) -> LogProbs:
    """The mean over models of each item's log-probabilities, scaled so that each frame's units add up to 1 again."""
    means = [np.mean(items, axis=0) for items in zip(*log_probs, strict=True)]
    return [item - np.logaddexp.reduce(item, axis=-1, keepdims=True) for item in means]
