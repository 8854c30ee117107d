"""Word error rate of a corpus, texts given as they are."""

from collections.abc import Callable, Iterator, Sequence

from benchmarks.measure import Case
from benchmarks.setting import Setting
from benchmarks.texts import misheard, texts_of
from seqformer.metrics import wer


def jiwer() -> Callable:
    import jiwer

    return lambda predictions, truth: jiwer.wer(list(truth), list(predictions))


def torchaudio() -> Callable:
    from torchaudio.functional import edit_distance

    return lambda predictions, truth: rate_by(edit_distance, predictions, truth)


def plain() -> Callable:
    return lambda predictions, truth: rate_by(edits, predictions, truth)


def rate_by(distance: Callable, predictions: Sequence[str], truth: Sequence[str]) -> float:
    pairs = [(said.split(), text.split()) for said, text in zip(predictions, truth, strict=True)]
    return sum(distance(said, text) for said, text in pairs) / sum(len(text) for _, text in pairs)


def edits(first: list[str], second: list[str]) -> int:
    """Levenshtein distance, row by row."""
    row = list(range(len(second) + 1))
    for index, word in enumerate(first, 1):
        before, row[0] = row[0], index
        for place, other in enumerate(second, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1]


PEERS = {"jiwer": jiwer, "torchaudio edit_distance": torchaudio, "plain Python": plain}


def cases(setting: Setting) -> Iterator[list[Case]]:
    truth = texts_of(setting, 20 if setting.quick else 2600)
    predictions = misheard(truth)
    runs = {"seqformer": wer} | setting.built(PEERS)
    yield [
        Case(
            f"{len(truth):,} utterances",
            who,
            lambda run=run: run(predictions, truth),
            len(truth),
            "utterances/s",
            note=f"{run(predictions, truth):.4f}",
        )
        for who, run in runs.items()
    ]
