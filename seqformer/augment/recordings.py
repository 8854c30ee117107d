"""A folder of recordings to augment with: each is looked at once, and only what is needed of it is read."""

from pathlib import Path

import numpy as np

from seqformer.augment.compose import Rng
from seqformer.data.audio import audio_facts, read_part, resample
from seqformer.data.corpus import find_files
from seqformer.errors import InputError, nearest

ENDINGS = (".flac", ".wav", ".ogg", ".opus", ".mp3")


class Recordings:
    """The audio files anywhere below a folder, in the order of their names, to be heard at ``rate`` Hz.

    What is drawn from it depends on which files are there: add some, and a run draws others from then on. Raises
    InputError when the folder is missing or has no audio, naming a file that is no audio, and without a rate.
    """

    def __init__(self, folder: str, rate: int | None):
        root = Path(folder)
        if rate is None:
            raise InputError(
                f"recordings of {folder} are to be played at the rate of the rows, not known here; give rate"
            )
        if not root.is_dir():
            here = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
            raise InputError(f"no folder of recordings at {folder}; {nearest(root.name, here)}")
        self.rate, self.paths = rate, find_files(root, ENDINGS)
        if not self.paths:
            raise InputError(f"{folder} has no recordings: no file ends with {', '.join(ENDINGS)}")
        facts = [audio_facts(path) for path in self.paths]
        self.frames, self.rates = (np.array([fact[name] for fact in facts]) for name in ("frames", "rate"))

    def whole(self, index: int) -> np.ndarray:
        """Samples (N,) of one recording."""
        path, rate = self.paths[index], int(self.rates[index])
        return resample(read_part(path, 0, int(self.frames[index])), rate, self.rate)

    def stretch(self, length: int, rng: Rng) -> np.ndarray:
        """``length`` samples of a recording drawn with equal chances, from a place drawn alike.

        One that is shorter goes round and round.
        """
        index = int(rng.integers(len(self.paths)))
        rate, frames = int(self.rates[index]), int(self.frames[index])
        needed = -(-length * rate // self.rate)
        if needed <= frames:
            part = read_part(self.paths[index], int(rng.integers(frames - needed + 1)), needed)
            return resample(part, rate, self.rate)[:length]
        whole = self.whole(index)
        return whole[(int(rng.integers(len(whole))) + np.arange(length)) % len(whole)]
