"""Batches of a dataset, read ahead by worker processes where there are any."""

import gc
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from seqformer.batch import Batch, collate
from seqformer.errors import InputError


def load_batches(
    dataset,
    keys: Iterable,
    workers: int = 0,
    device: torch.device | None = None,
    prefetch: int = 2,
    multiple: int = 1,
) -> Iterator[Batch]:
    """Batches of the examples at ``keys``, those of each batch as (items, 2), in order; ``multiple`` as in collate.

    Keys are taken as batches are read, ``prefetch`` of them ahead by each worker: given those of one epoch after
    another, workers start once, and have begun an epoch when the one before it ends. With a ``device`` that is a GPU,
    batches are copied to it on the way. Raises the InputError of a row that cannot be read, the same one line for any
    number of workers.
    """
    on_gpu = device is not None and device.type == "cuda"
    options = {"num_workers": workers, "pin_memory": on_gpu, "prefetch_factor": prefetch if workers else None}
    pairs = (list(map(tuple, np.asarray(batch).tolist())) for batch in keys)
    collated = partial(collate, multiple=multiple)
    loader = DataLoader(dataset, batch_sampler=pairs, collate_fn=collated, worker_init_fn=begin_worker, **options)
    try:
        yield from copied_ahead(loader, device) if on_gpu else loader
    except InputError as error:  # a worker's arrives with its traceback as the message
        line = str(error).strip().splitlines()[-1]
        raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches with inputs and targets on a GPU, each copied from pinned memory while the one before is worked on.

    Mask and weight stay: who counts with them need not wait for the GPU, and they are small.
    """
    stream = torch.cuda.Stream(device)

    def copied(batch: Batch) -> Batch:
        with torch.cuda.stream(stream):
            return replace(batch.to(device), mask=batch.mask, weight=batch.weight)

    arriving = map(copied, batches)
    following = next(arriving, None)
    while following is not None:
        working = torch.cuda.current_stream(device)
        working.wait_stream(stream)  # for this batch alone: the next copy is not asked for yet
        batch, following = following, next(arriving, None)
        for tensor in (*batch.inputs.values(), *batch.targets.values()):
            if tensor.device.type == device.type:
                tensor.record_stream(working)  # its memory belongs to the other stream, and is in use here until then
        yield batch


def begin_worker(worker: int) -> None:
    """End a worker whose parent was killed while it started, and keep what it has of its parent shared.

    torch's workers look for a change of their parent from when they begin to look: such a one would wait for ever. The
    garbage collector writes into every object it looks at, so it leaves alone those that the parent made.
    """
    if multiprocessing.get_start_method() == "fork" and os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)
    gc.freeze()
