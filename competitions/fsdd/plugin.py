"""Spoken digit strings: recordings of one speaker joined with random gaps, made on the fly."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from seqformer import Example, InputError, RowReader, draw_seed, register, stretch_states

if TYPE_CHECKING:
    import polars

    from seqformer import Targets

# The validation strings are the same for every seed of a run, so that scores of different seeds compare.
FIXED_SEED = 20_221_121


@register("dataset", "joined_digits")
class JoinedDigits:
    """Strings of digits spoken by one speaker, with silence between.

    Training: ``items`` strings an epoch, each a pure function of (seed, epoch, index). ``ramp`` lists [first epoch,
    fewest digits, most digits]; the last entry that has begun holds. Without a ramp from short strings to long ones,
    CTC training sits on the plateau where every frame is blank. Validation: ``strings`` fixed strings per speaker of
    ``digits`` digits each. ``gap_ms`` bounds the silence between two digits. A target other than ``text`` is a text
    with the state of each of its frames, ``hop_ms`` apart, as seqformer.align_rows gives one to each recording.
    """

    def __init__(
        self,
        table: "polars.DataFrame",
        targets: "Targets | None",
        rate: int,
        seed: int,
        augment: Callable[[Example, int], Example] | None = None,
        training: bool = False,
        items: int = 2000,
        strings: int = 100,
        digits: tuple[int, int] = (3, 7),
        gap_ms: tuple[float, float] = (20.0, 300.0),
        ramp: list[tuple[int, int, int]] = (),
        hop_ms: float = 16.0,
    ):
        self.reader, self.targets, self.rate, self.seed = RowReader(table, rate), targets, rate, seed
        self.augment, self.training, self.items, self.strings = augment, training, items, strings
        self.digits, self.gap_ms, self.ramp = digits, gap_ms, sorted(ramp)
        self.hop = round(rate * hop_ms / 1000)
        self.words, self.clip_frames = table["text"].to_list(), self.reader.frames()
        self.spoken = {name: table[name].to_list() for name in targets.encoders if name != "text"} if targets else {}
        speakers = table["speaker"].to_numpy()
        self.speakers = sorted(set(speakers.tolist()))
        self.clips = {speaker: np.flatnonzero(speakers == speaker) for speaker in self.speakers}
        for fewest, most in (digits, *(step[1:] for step in self.ramp)):
            if not 1 <= fewest <= most:
                raise InputError(f"dataset: found {[fewest, most]}; expected the fewest and the most digits, from 1")
        if self.ramp and self.ramp[0][0] != 0:
            raise InputError(f"dataset.ramp begins at epoch {self.ramp[0][0]}; its first entry must be for epoch 0")
        if not 0 <= gap_ms[0] <= gap_ms[1]:
            raise InputError(f"dataset.gap_ms: found {list(gap_ms)}; expected the shortest and the longest silence")
        if not training:
            keys = [(speaker, number) for speaker in self.speakers for number in range(strings)]
            self.ids = np.array([f"{speaker}-{number:03d}" for speaker, number in keys])
            texts = [self.text(-1, index) for index in range(len(keys))]
            self.columns = {"text": texts} | {name: [{"text": text} for text in texts] for name in self.spoken}

    def __len__(self) -> int:
        return self.items if self.training else self.strings * len(self.speakers)

    def plan(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of the recordings of a string, and the silence (n-1,) between them in samples."""
        if self.training:
            rng = np.random.default_rng(draw_seed(self.seed, epoch, index))
            fewest, most = [tuple(step[1:]) for step in self.ramp if step[0] <= epoch][-1] if self.ramp else self.digits
            speaker = self.speakers[rng.integers(len(self.speakers))]
        else:
            rng = np.random.default_rng([FIXED_SEED, index])
            (fewest, most), speaker = self.digits, self.speakers[index // self.strings]
        count = int(rng.integers(fewest, most + 1))
        clips = rng.choice(self.clips[speaker], count)
        return clips, (rng.uniform(*self.gap_ms, count - 1) * self.rate / 1000).astype(np.int64)

    def text(self, epoch: int, index: int) -> str:
        return " ".join(self.words[row] for row in self.plan(epoch, index)[0])

    def frames(self, epoch: int) -> np.ndarray:
        plans = (self.plan(epoch, index) for index in range(len(self)))
        return np.array([self.clip_frames[clips].sum() + gaps.sum() for clips, gaps in plans])

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        clips, gaps = self.plan(epoch, index)
        pieces = [self.reader[clips[0]]]
        for row, gap in zip(clips[1:], gaps, strict=True):
            pieces += [np.zeros(gap, dtype=np.float32), self.reader[row]]
        x = np.concatenate(pieces)
        row_id = f"{epoch}-{index}" if self.training else str(self.ids[index])
        values = {"text": self.text(epoch, index)} | {name: self.joined(name, clips, gaps) for name in self.spoken}
        targets, axes = self.targets.encode(values) if self.targets else ({}, {})
        example = Example(row_id, {"x": x}, len(x), targets, axes=axes)
        if self.augment is None:
            return example
        # another seed than the plan's, or the two would draw the same numbers
        example = self.augment(example, draw_seed(self.seed, epoch, index, 1))
        frames = -(-example.frames // self.hop)  # of a string played faster or slower
        moved = {name: stretch_states(example.targets[name], frames) for name in self.spoken}
        return replace(example, targets={**example.targets, **moved})

    def joined(self, name: str, clips: np.ndarray, gaps: np.ndarray) -> dict[str, np.ndarray]:
        """States of a string's frames: those of the recordings, silence between; none in validation."""
        if not self.training:
            return {}
        lengths, field = self.clip_frames[clips], self.targets.encoders[name].field
        starts = np.concatenate([[0], np.cumsum(lengths[:-1] + gaps)])
        at = np.arange(-(-(starts[-1] + lengths[-1]) // self.hop)) * self.hop  # the sample that a frame is centred on
        place = np.searchsorted(starts, at, side="right") - 1
        within = at - starts[place]
        pieces = [self.spoken[name][row][field] for row in clips]
        states = [
            pieces[clip][min(round(sample / self.hop), len(pieces[clip]) - 1)]
            for clip, sample in zip(place.tolist(), within.tolist(), strict=True)
        ]
        return {field: np.where(within < lengths[place], states, 0)}
