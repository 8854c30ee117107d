"""The input pipeline: an epoch of recordings as padded batches of samples, in worker processes."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.measure import Case
from benchmarks.recordings import RATE, recordings, write_files, write_store
from benchmarks.setting import Setting
from seqformer import SequenceDataset
from seqformer.data.loader import load_batches
from seqformer.data.sampler import padding_share, plan_batches

BUDGET_SECONDS = 120


class Files(torch.utils.data.Dataset):
    """Samples of files, as a torch user writes it."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(soundfile.read(self.paths[index], dtype="float32")[0])


def ours(table: polars.DataFrame, workers: int) -> tuple[Callable[[], object], float]:
    """An epoch, and the share of it that is padding."""
    dataset = SequenceDataset(table)
    batches = plan_batches(dataset.frames(0), BUDGET_SECONDS * RATE, 64, seed=[0])
    keys = [[(0, int(row)) for row in batch] for batch in batches]
    return lambda: [batch.frames for batch in load_batches(dataset, keys, workers)], padding_share(
        dataset.frames(0), batches
    )


def usual(table: polars.DataFrame, workers: int) -> tuple[Callable[[], object], float]:
    """Random batches of as many items as the budget holds on average."""
    frames, rng = table["frames"].to_numpy(), np.random.default_rng(0)
    items = max(1, int(BUDGET_SECONDS * RATE / frames.mean()))
    batches = np.split(rng.permutation(len(frames)), range(items, len(frames), items))
    loader = DataLoader(
        Files(table["path"].to_list()),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=lambda examples: pad_sequence(examples, batch_first=True),
    )
    return lambda: [batch.shape for batch in loader], padding_share(frames, batches)


def cases(setting: Setting) -> Iterator[list[Case]]:
    found = recordings(setting, 12 if setting.quick else 400)
    hours = sum(len(samples) / rate for samples, rate, _ in found) / 3600
    with tempfile.TemporaryDirectory() as place:
        stored, files = write_store(Path(place), found), write_files(Path(place), found, "flac")
        for workers in [0] if setting.quick else [0, 2]:
            epochs = {
                "seqformer, store": ours(stored, workers),
                "seqformer, FLAC files": ours(files, workers),
                "torch DataLoader, FLAC files": usual(files, workers),
            }
            yield [
                Case(
                    f"{len(found)} recordings, {workers} workers",
                    who,
                    epoch,
                    hours,
                    "h of audio/s",
                    wall=True,
                    note=f"padding {padding:.0%}",
                )
                for who, (epoch, padding) in epochs.items()
            ]
