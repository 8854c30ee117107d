"""Batches of a dataset, read ahead by worker processes where there are any."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial

from torch.utils.data import DataLoader

from seqformer.batch import Batch, collate
from seqformer.errors import InputError


def load_batches(
    dataset, keys: Sequence, workers: int = 0, pin_memory: bool = False, multiple: int = 1
) -> Iterator[Batch]:
    """Batches of the examples at ``keys``, a list of them for each batch, in order; ``multiple`` as in collate.

    Raises the InputError of a row that cannot be read, the same one line for any number of workers.
    """
    options = {"num_workers": workers, "pin_memory": pin_memory, "worker_init_fn": end_with_parent}
    loader = DataLoader(dataset, batch_sampler=keys, collate_fn=partial(collate, multiple=multiple), **options)
    try:
        yield from loader
    except InputError as error:  # a worker's arrives with its traceback as the message
        line = str(error).strip().splitlines()[-1]
        raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error


def end_with_parent(worker: int) -> None:
    """End a worker whose parent was killed while it started.

    torch's workers look for a change of their parent from when they begin to look: such a one would wait for ever.
    """
    if multiprocessing.get_start_method() == "fork" and os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)
