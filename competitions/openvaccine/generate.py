"""Made-up files with OpenVaccine's names and columns: ``python -m competitions.openvaccine.generate OUT``.

Random sequences fold into random hairpins. An unpaired base degrades by its kind and its loop, a paired one hardly, so
that a model learns something within a minute; the errors stated are those of the noise that was added.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer

PAIRS = ("GC", "CG", "AU", "UA", "GU", "UG")
RATE = {"A": 1.0, "G": 0.8, "C": 0.4, "U": 0.5}
SHARES = {"reactivity": 1.0, "deg_Mg_pH10": 1.2, "deg_pH10": 0.8, "deg_Mg_50C": 1.1, "deg_50C": 0.9}


def fold(length: int, rng: np.random.Generator) -> tuple[str, str, str]:
    """A random sequence, its brackets and its loop types: hairpins with tails between."""
    letters, brackets, loops = list(rng.choice(list("ACGU"), length)), ["."] * length, ["E"] * length
    at = int(rng.integers(3, 8))
    while at + 27 < length:  # the longest hairpin, and the gap after it
        stem, loop = int(rng.integers(4, 8)), int(rng.integers(4, 7))
        for step in range(stem):
            left, right = at + step, at + 2 * stem + loop - 1 - step
            letters[left], letters[right] = rng.choice(PAIRS)
            brackets[left], brackets[right], loops[left], loops[right] = "(", ")", "S", "S"
        loops[at + stem : at + stem + loop] = "H" * loop
        at += 2 * stem + loop + int(rng.integers(1, 6))
        loops[at - 1] = "X"
    return "".join(letters), "".join(brackets), "".join(loops)


def row(name: str, length: int, scored: int, labelled: bool, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    """One line of the JSON file, and its matrix of pairing probabilities (T, T)."""
    sequence, structure, loops = fold(length, rng)
    found = {"id": name, "sequence": sequence, "structure": structure, "predicted_loop_type": loops}
    found |= {"seq_length": length, "seq_scored": scored}
    matrix, open_at = np.zeros((length, length), np.float32), []
    for position, letter in enumerate(structure):
        if letter == "(":
            open_at.append(position)
        elif letter == ")":
            matrix[position, open_at[-1]] = matrix[open_at.pop(), position] = rng.uniform(0.6, 1.0)
    if labelled:
        noise = rng.uniform(0.05, 0.3)
        unpaired = 1 - matrix.sum(axis=0)[:scored]
        clean = np.array([RATE[letter] for letter in sequence[:scored]]) * unpaired
        found |= {"signal_to_noise": float(1 / noise), "SN_filter": int(noise < 0.25)}
        for target, share in SHARES.items():
            values = share * clean + noise * rng.standard_normal(scored)
            error = target.replace("deg_", "deg_error_") if "deg" in target else f"{target}_error"
            found |= {target: values.round(4).tolist(), error: [noise] * scored}
    return found, matrix


def generate(out: Path, rows: int = 120, seed: int = 0) -> None:
    """Write ``train.json``, ``test.json`` (a third as many, half of them of 130 bases) and ``bpps/``."""
    rng = np.random.default_rng(seed)
    with seqformer.replace_folder(out) as folder:
        (folder / "bpps").mkdir()
        for split, count in (("train", rows), ("test", rows // 3)):
            lines = []
            for number in range(count):
                longer = split == "test" and number % 2
                found, matrix = row(
                    f"{split}_{number}", 130 if longer else 107, 91 if longer else 68, split == "train", rng
                )
                np.save(folder / "bpps" / f"{found['id']}.npy", matrix)
                lines.append(json.dumps({"index": number} | found))
            (folder / f"{split}.json").write_text("\n".join(lines) + "\n")


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    rows: Annotated[int, typer.Option(help="Sequences to train on.")] = 120,
    seed: int = 0,
) -> None:
    """Make up the files of the OpenVaccine competition."""
    generate(out, rows, seed)


if __name__ == "__main__":
    seqformer.run_command(main)
