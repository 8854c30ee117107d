"""Phrases of a saved model: ``python -m competitions.asl_fingerspelling.submit CHECKPOINT MANIFEST OUT``.

CHECKPOINT is what ``seqformer save`` writes. OUT gets ``inference_args.json``, the columns that the competition's
runner shall read (all of a submission but the model), and ``predictions.csv``: sequence_id, phrase. A clip that is too
short to read, or that a ``confidence`` head does not trust, gets one phrase that is right in more places than a guess.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import torch
import typer

import seqformer
from competitions.asl_fingerspelling.points import COLUMNS

DUMMY = "2 a-e -aroe"
LEAST_FRAMES = 15  # of the clip as recorded
LEAST_CONFIDENCE = 0.15
CLIPS = 32  # read at a time


def with_dummy(phrases: list[str], frames: list[int], confidence: list[float] | None = None) -> list[str]:
    """Phrases with the dummy phrase in place of those not to be trusted."""
    sure = [1.0] * len(phrases) if confidence is None else confidence
    good = [count >= LEAST_FRAMES and value >= LEAST_CONFIDENCE for count, value in zip(frames, sure, strict=True)]
    return [phrase if kept else DUMMY for phrase, kept in zip(phrases, good, strict=True)]


@torch.inference_mode()
def read_phrases(model: seqformer.SequenceModel, table: polars.DataFrame) -> tuple[list[str], list[float] | None]:
    """The phrase of each row and, of a model with a head ``confidence``, how sure it is of it. Raises InputError."""
    if model.tokenizer is None:
        raise seqformer.InputError("the checkpoint has no tokenizer: its main head reads no text")
    dataset, main = seqformer.SequenceDataset(table), next(iter(model.heads))
    phrases, confidence = [""] * len(dataset), np.ones(len(dataset))
    order = np.argsort(dataset.frames(0), kind="stable")  # like lengths together
    for rows in np.array_split(order, range(CLIPS, len(order), CLIPS)):
        found = model.predict(seqformer.collate([dataset.read(int(row)) for row in rows]))
        for row, units in zip(rows, found[main], strict=True):
            phrases[row] = model.tokenizer.decode(units)
        if "confidence" in found:
            confidence[rows] = np.concatenate(found["confidence"])
    return phrases, confidence.tolist() if "confidence" in model.heads else None


def submit(checkpoint: Path, manifest: Path, out: Path) -> Path:
    """Write both files into ``out`` and return the predictions'. Raises InputError."""
    model, table, out = seqformer.load_pretrained(checkpoint).eval(), seqformer.read_manifest(manifest), Path(out)
    phrases, confidence = read_phrases(model, table)
    kept = with_dummy(phrases, table["raw_frames"].to_list(), confidence)
    out.mkdir(parents=True, exist_ok=True)
    (out / "inference_args.json").write_text(json.dumps({"selected_columns": COLUMNS}) + "\n")
    answers = table.select(sequence_id="sequence").with_columns(phrase=polars.Series(kept))
    seqformer.write_submission(answers, out / "predictions.csv", answers.select("sequence_id", "phrase"))
    changed = sum(one != two for one, two in zip(phrases, kept, strict=True))
    print(f"{len(kept):,} phrases -> {out / 'predictions.csv'}; the dummy phrase in place of {changed:,}")
    return out / "predictions.csv"


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A folder of: seqformer save.")],
    manifest: Annotated[Path, typer.Argument(help="The clips to read.")],
    out: Annotated[Path, typer.Argument(help="Folder for both files.")],
) -> None:
    """Read the clips of a manifest with a saved model."""
    submit(checkpoint, manifest, out)


if __name__ == "__main__":
    seqformer.run_command(main)
