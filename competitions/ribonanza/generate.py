"""Made-up files with Ribonanza's names and columns: ``python -m competitions.ribonanza.generate OUT``.

Random sequences with random hairpins, in which any two bases may pair, so that a base tells nothing of its partner:
only the pairing probabilities do. The reactivity of an unpaired base depends on it and its neighbours, that of a paired
one on it and its partner. ``test_data.csv``, which the competition kept, has the truth of the test rows.
"""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.ribonanza.prepare import BASES, PROBES

SCORED = (26, 21)  # bases at the start and the end that no experiment reaches
SHORT, LONG = (177, 206), 457
NOISE = 0.05  # deviation of a reactivity; of Gaussian noise, the mean absolute value is 0.8 of it


def tables(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reactivity of an unpaired base by its left neighbour, itself, its right one, and of a paired one by its partner.

    (2, 4, 4, 4) and (2, 4, 4), of both experiments, between 0 and 1.
    """
    return rng.uniform(0.1, 0.9, (2, 4, 4, 4)), rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], (2, 4, 4))


def hairpins(length: int, rng: np.random.Generator) -> np.ndarray:
    """The partner of each base (T,), -1 for none: stems of random lengths round loops, and gaps between."""
    partner, at = np.full(length, -1), int(rng.integers(2, 12))
    while True:
        stem, loop = int(rng.integers(4, 14)), int(rng.integers(3, 24))
        end = at + 2 * stem + loop
        if end > length:
            return partner
        left = np.arange(at, at + stem)
        partner[left], partner[end - 1 - (left - at)] = end - 1 - (left - at), left
        at = end + int(rng.integers(1, 9))


def profile(bases: np.ndarray, partner: np.ndarray, chances: np.ndarray, effects: tuple) -> np.ndarray:
    """Reactivities (T, 2) without noise: paired and unpaired ones by the probability (T,) of the pair."""
    alone, together = effects
    left, right = np.roll(bases, 1), np.roll(bases, -1)
    return (chances * together[:, bases, bases[partner]] + (1 - chances) * alone[:, left, bases, right]).T


def write_split(folder: Path, split: str, lengths: np.ndarray, effects: tuple, rng: np.random.Generator) -> None:
    """The csv files and pairing files of one split."""
    longest = SHORT[1] if split == "train" else LONG
    numbers = [f"{number:04d}" for number in range(1, longest + 1)]
    head = ["sequence_id", "sequence", "experiment_type", "dataset_name", "reads", "signal_to_noise", "SN_filter"]
    head += [f"reactivity_{number}" for number in numbers] + [f"reactivity_error_{number}" for number in numbers]
    listed, first = [], 0
    with open(folder / f"{split}_data.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        for length in lengths.tolist():
            name, bases = f"{rng.integers(16**12):012x}", rng.integers(0, 4, length)
            partner = hairpins(length, rng)
            chances = np.where(partner < 0, 0, rng.uniform(0.8, 1.0, length))
            chances = np.where(partner > np.arange(length), chances, chances[partner]) * (partner >= 0)
            sequence = "".join(BASES[base] for base in bases)
            write_pairs(folder, name, partner, chances)
            values = profile(bases, partner, chances, effects) + NOISE * rng.standard_normal((length, 2))
            for column, probe in enumerate(PROBES):
                snr = float(rng.uniform(0.5, 12))
                facts = [name, sequence, probe, "made_up", int(100 * snr), round(snr, 3), int(snr >= 1)]
                table.writerow(facts + cells(values[:, column], longest) + cells(np.full(length, NOISE), longest))
            listed.append([first, first + length - 1, name, sequence, int(length == LONG)])
            first += length
    if split == "test":
        with open(folder / "test_sequences.csv", "w", newline="") as file:
            csv.writer(file).writerows([["id_min", "id_max", "sequence_id", "sequence", "future"], *listed])


def write_pairs(folder: Path, name: str, partner: np.ndarray, chances: np.ndarray) -> None:
    place = folder / "Ribonanza_bpp_files" / "extra_data" / name[0] / name[1] / name[2]
    place.mkdir(parents=True, exist_ok=True)
    lines = [f"{i + 1} {partner[i] + 1} {chances[i]:.4f}\n" for i in np.flatnonzero(partner > np.arange(len(partner)))]
    (place / f"{name}.txt").write_text("".join(lines))


def cells(values: np.ndarray, columns: int) -> list[str]:
    """Numbers as text, empty beyond what is scored."""
    first, last = SCORED[0], len(values) - SCORED[1]
    return [f"{value:.3f}" if first <= at < last else "" for at, value in enumerate(values)] + [""] * (
        columns - len(values)
    )


def generate(out: Path, rows: int = 200, test_rows: int | None = None, seed: int = 0) -> None:
    """Write the files; of the test sequences, a fifth of ``rows`` by default, every second has 457 bases."""
    rng = np.random.default_rng(seed)
    effects = tables(rng)
    with seqformer.replace_folder(out) as folder:
        for split, count in (("train", rows), ("test", rows // 5 if test_rows is None else test_rows)):
            lengths = rng.integers(SHORT[0], SHORT[1] + 1, count)
            if split == "test":
                lengths[1::2] = LONG
            write_split(folder, split, lengths, effects, rng)


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    rows: Annotated[int, typer.Option(help="Sequences to train on.")] = 200,
    seed: int = 0,
) -> None:
    """Make up the files of the Ribonanza competition."""
    generate(out, rows, seed=seed)


if __name__ == "__main__":
    seqformer.run_command(main)
