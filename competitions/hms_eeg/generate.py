"""Made-up files with the names and columns of HMS: ``python -m competitions.hms_eeg.generate OUT``.

Noise with a rhythm of its own for each kind of activity, on one side of the head or on both; several experts vote, most
of them for what it is. Recordings of one patient share a loudness.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.hms_eeg.prepare import ELECTRODES, RATE, VOTES, WINDOW

KINDS = ("Seizure", "LPD", "GPD", "LRDA", "GRDA", "Other")
HERTZ = (6.0, 2.0, 2.0, 2.5, 2.5, 0.0)  # seizures are faster than periodic or rhythmic activity
SHARP = (1, 6, 6, 1, 1, 1)  # periodic discharges are spikes, rhythmic ones waves
LATERAL = (False, True, False, True, False, False)
LEFT = ("Fp1", "F3", "C3", "P3", "F7", "T3", "T5", "O1")


def recording(kind: int, frames: int, loudness: float, rng: np.random.Generator) -> np.ndarray:
    """Microvolts (frames, 20) of each electrode, the last of them the heart's; a few are missing."""
    seconds = np.arange(frames) / RATE
    x = 8 * rng.standard_normal((frames, len(ELECTRODES)))
    x += 20 * np.sin(2 * np.pi * (0.3 * seconds[:, None] + rng.random(len(ELECTRODES))))  # drift, to be filtered out
    if HERTZ[kind]:
        phase = 2 * np.pi * (HERTZ[kind] * rng.uniform(0.9, 1.1) * seconds + rng.random())
        wave = np.sign(np.sin(phase)) * np.abs(np.sin(phase)) ** SHARP[kind]
        names = rng.permutation(["left", "right"])[: 1 if LATERAL[kind] else 2]
        sides = ["left" if name in LEFT else "right" for name in ELECTRODES]
        gain = np.array([rng.uniform(40, 90) if side in names else 0.0 for side in sides])
        x += wave[:, None] * gain * rng.choice([-1, 1], len(ELECTRODES))
    x[rng.integers(frames - 40) :][:40] = np.nan
    return (loudness * x).astype(np.float32)


def votes_of(kind: int, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Votes (6,) of so many experts: few agree less often than many do."""
    chances = np.full(len(KINDS), 0.05 if experts > 5 else 0.08)
    chances[kind] = 1 - chances.sum() + chances[kind]
    return rng.multinomial(experts, chances)


def generate(out: Path, patients: int = 24, recordings: int = 2, seed: int = 0) -> None:
    """Write ``train.csv``, ``train_eegs/``, ``test.csv``, ``test_eegs/`` (6 recordings), ``sample_submission.csv``."""
    import polars

    rng, train, test = np.random.default_rng(seed), [], []
    with seqformer.replace_folder(out) as folder:
        for name in ("train_eegs", "test_eegs"):
            (folder / name).mkdir()

        def write(split: str, number: int, kind: int, seconds: int, loudness: float) -> int:
            eeg = 1_000_000 + 7919 * number
            x = recording(kind, RATE * seconds, loudness, rng)
            polars.DataFrame(x, schema=list(ELECTRODES)).write_parquet(folder / f"{split}_eegs" / f"{eeg}.parquet")
            return eeg

        for patient in range(patients):
            loudness = rng.uniform(0.7, 1.4)
            for number in range(recordings):
                kind = int(rng.integers(len(KINDS)))
                ids = {"eeg_id": write("train", patient * recordings + number, kind, 62, loudness)}
                votes = dict(zip(VOTES, votes_of(kind, int(rng.choice([3, 12])), rng).tolist(), strict=True))
                for sub, offset in enumerate((0.0, 6.0, 12.0)):
                    row = ids | {"eeg_sub_id": sub, "eeg_label_offset_seconds": offset}
                    row |= {"spectrogram_id": patient, "spectrogram_sub_id": sub}
                    row |= {"spectrogram_label_offset_seconds": offset, "label_id": 10 * ids["eeg_id"] + sub}
                    train.append(row | {"patient_id": 100 + patient, "expert_consensus": KINDS[kind]} | votes)
        for number in range(6):
            eeg = write("test", 10_000 + number, number, WINDOW // RATE, 1.0)
            test.append({"spectrogram_id": 9000 + number, "eeg_id": eeg, "patient_id": 900 + number})
        polars.DataFrame(train).write_csv(folder / "train.csv")
        polars.DataFrame(test).write_csv(folder / "test.csv")
        sample = [{"eeg_id": row["eeg_id"]} | dict.fromkeys(VOTES, 1 / len(VOTES)) for row in test]
        polars.DataFrame(sample).write_csv(folder / "sample_submission.csv")


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    patients: Annotated[int, typer.Option(help="Patients to train on, of two recordings each.")] = 24,
    seed: int = 0,
) -> None:
    """Make up the files of the HMS competition."""
    generate(out, patients, seed=seed)


if __name__ == "__main__":
    seqformer.run_command(main)
