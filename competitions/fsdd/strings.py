"""Fixed strings of joined digits for noisy students: ``python -m competitions.fsdd.strings MANIFEST OUT``.

MANIFEST is what ``prepare`` wrote. OUT gets ``audio/`` and four manifests: ``labelled``, strings of the labelled
speakers (column ``usual``: those of recordings 0 to 4 are fold 0, the others always trained on); ``unlabelled``, of
other speakers, recordings 5 to 49 (their text only tells how true labels are); ``known``, recordings 0 to 4 of these
other speakers, and ``unseen``, a speaker of none of the others, both to score on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import seqformer
from competitions.fsdd.plugin import JoinedDigits

if TYPE_CHECKING:
    import polars

RATE = 8_000  # Hz


def join_strings(
    table: "polars.DataFrame", name: str, count: int, digits: tuple[int, int], seed: int, writer: seqformer.StoreWriter
) -> list[dict]:
    """Manifest rows of so many strings, each of one speaker of the recordings in ``table``."""
    made, rows = JoinedDigits(table, None, RATE, seed, training=True, items=count, ramp=[(0, *digits)]), []
    for index in range(count):
        samples = np.rint(32767 * made[0, index].inputs["x"]).astype(np.int16)
        speaker = table["speaker"][int(made.plan(0, index)[0][0])]
        place = {"id": f"{name}-{index:04d}", "path": "audio", "row": writer.add(samples), "frames": len(samples)}
        rows.append(place | {"rate": RATE, "text": made.text(0, index), "speaker": speaker})
    return rows


def write_strings(
    manifest: Path, out: Path, labelled: list[str], unseen: str, counts: tuple[int, int, int], seed: int
) -> None:
    """Write the four manifests; ``counts``: labelled strings, unlabelled ones, and those of each set to score on.

    Labelled strings to train on have 1 to 7 digits, all others 3 to 7. Raises InputError on an unknown speaker.
    """
    table = seqformer.read_manifest(manifest)
    speakers = set(table["speaker"])
    for speaker in (*labelled, unseen):
        if speaker not in speakers:
            raise seqformer.InputError(f"no speaker {speaker!r} in {manifest}; there are {', '.join(sorted(speakers))}")
    if unseen in labelled or len(speakers) < len(labelled) + 2:
        raise seqformer.InputError(f"{sorted(speakers)}: expected labelled speakers, another unseen one, and others")
    ours = table["speaker"].is_in(labelled)
    others, test = ~ours & (table["speaker"] != unseen), table["usual"] == 0
    parts = {
        "train": (ours & ~test, counts[0], (1, 7)),
        "valid": (ours & test, counts[2], (3, 7)),
        "unlabelled": (others & ~test, counts[1], (3, 7)),
        "known": (others & test, counts[2], (3, 7)),
        "unseen": (table["speaker"] == unseen, counts[2], (3, 7)),
    }
    with seqformer.StoreWriter(out / "audio", dtype="int16") as writer:
        made = {
            name: join_strings(table.filter(rows), name, count, digits, seqformer.draw_seed(seed, number), writer)
            for number, (name, (rows, count, digits)) in enumerate(parts.items())
        }
    made["labelled"] = [row | {"usual": -1} for row in made.pop("train")] + [
        row | {"usual": 0} for row in made.pop("valid")
    ]
    for name, rows in made.items():
        seqformer.write_manifest(rows, out / f"{name}.parquet")
        print(f"{name:10} {len(rows):5} strings {sum(row['frames'] for row in rows) / RATE / 60:6.1f} minutes")


def main(
    manifest: Annotated[Path, typer.Argument(help="The manifest that prepare wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for the manifests and audio/.")],
    labelled: Annotated[str, typer.Option(help="Speakers with labels.")] = "george,jackson",
    unseen: Annotated[str, typer.Option(help="A speaker to score on only.")] = "yweweler",
    strings: Annotated[tuple[int, int, int], typer.Option(help="Labelled, unlabelled, to test on.")] = (300, 500, 200),
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:
    """Join recordings of digits into fixed strings, labelled and unlabelled ones of different speakers."""
    write_strings(manifest, out, [name.strip() for name in labelled.split(",")], unseen.strip(), strings, seed)


if __name__ == "__main__":
    seqformer.run_command(main)
