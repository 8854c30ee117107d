"""Batches of a dataset, read ahead by worker processes where there are any."""

from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader

from seqformer.batch import Batch, collate
from seqformer.errors import InputError


def load_batches(dataset, keys: Sequence, workers: int = 0, pin_memory: bool = False) -> Iterator[Batch]:
    """Batches of the examples at ``keys``, a list of them for each batch, in order.

    Raises the InputError of a row that cannot be read, the same one line for any number of workers.
    """
    loader = DataLoader(dataset, batch_sampler=keys, collate_fn=collate, num_workers=workers, pin_memory=pin_memory)
    try:
        yield from loader
    except InputError as error:  # a worker's arrives with its traceback as the message
        line = str(error).strip().splitlines()[-1]
        raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
