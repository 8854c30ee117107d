"""Free Spoken Digit Dataset -> manifest and store: ``python -m competitions.fsdd.prepare FOLDER OUT``.

FOLDER is a clone of github.com/Jakobovski/free-spoken-digit-dataset, or any folder with files named
``<digit>_<speaker>_<index>.{wav,flac,opus}`` at any depth. OUT gets ``manifest.parquet`` and ``audio/`` (int16, 8 kHz).
The column ``usual`` is the usual protocol as a fold: recordings 0 to 4 of every digit and speaker are fold 0 (the test
set), all others -1 (always trained on). It is easy, since every test speaker is known; grouping by ``speaker`` is not.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

import seqformer

RATE = 8_000  # Hz
NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>.+)_(?P<index>[0-9]+)")
COLUMNS = ("label", "text", "speaker", "index", "usual")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def find_recordings(folder: Path) -> list[dict]:
    """Manifest rows without audio yet, and each one's ``file``, sorted by speaker, digit, index. Raises InputError."""
    if not folder.is_dir():
        raise seqformer.InputError(f"{folder} is not a folder; give a clone of the Free Spoken Digit Dataset")
    faults, found, others = seqformer.Faults(folder), {}, []
    for path in seqformer.find_files(folder):
        match = NAME.fullmatch(path.stem)
        if match is None:
            others.append(str(path.relative_to(folder)))
            continue
        digit, speaker, index = match["digit"], match["speaker"], int(match["index"])
        name = f"{digit}_{speaker}_{index}"
        if name in found:
            faults.add("duplicate id", name, path, f"also {found[name]['file'].relative_to(folder)}")
        row = {"id": name, "file": path, "label": digit, "text": WORDS[int(digit)], "speaker": speaker}
        found[name] = row | {"index": index, "usual": 0 if index < 5 else -1}
    if not found:
        raise seqformer.InputError(
            f"{folder}: no file is named <digit>_<speaker>_<index>.wav, .flac or .opus "
            f"({len(others)} other audio files); give a clone of the Free Spoken Digit Dataset"
        )
    faults.check()
    if others:
        print(f"left out {len(others)} audio files not named <digit>_<speaker>_<index>: {seqformer.first_few(others)}")
    return sorted(found.values(), key=lambda row: (row["speaker"], row["label"], row["index"]))


def prepare(folder: Path, out: Path) -> Path:
    """Check the recordings, write ``out/manifest.parquet`` and ``out/audio``, print a table, return the manifest.

    Raises InputError, with ``out`` as it was, when a file is unreadable or doubled or none is found.
    """
    folder, out = Path(folder), Path(out)
    recordings = find_recordings(folder)
    if out.exists() and not out.is_dir():
        raise seqformer.InputError(f"{out} is a file; the prepared data need a folder")
    manifest = out / "manifest.parquet"
    with seqformer.StoreWriter(out / "audio", dtype="int16") as writer:
        rows = read_rows(folder, recordings, writer)
        manifest.unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(rows, manifest)
    print_summary(rows)
    return manifest


def read_rows(folder: Path, recordings: list[dict], writer: seqformer.StoreWriter) -> list[dict]:
    """Decode all recordings into the store and return complete manifest rows. Raises InputError."""
    faults, rows = seqformer.Faults(folder), []
    answers = seqformer.read_pcm_files([recording["file"] for recording in recordings], RATE)
    for recording, answer in zip(recordings, answers, strict=True):
        name, path, targets = recording["id"], recording["file"], {k: recording[k] for k in COLUMNS}
        if isinstance(answer, seqformer.InputError):
            faults.add("unreadable audio", name, path, answer)
            continue
        samples, rate = answer
        place = {"id": name, "path": "audio", "row": writer.add(samples), "frames": len(samples), "rate": rate}
        rows.append(place | targets)
    faults.check()
    return rows


def print_summary(rows: list[dict]) -> None:
    """One table: speaker, recordings, minutes, and how many are test recordings of the usual protocol."""
    print(f"{'speaker':12}  recordings  minutes  usual test")
    names = dict.fromkeys(row["speaker"] for row in rows)
    groups = [(name, [row for row in rows if row["speaker"] == name]) for name in names]
    for speaker, some in [*groups, ("all", rows)]:
        minutes = sum(row["frames"] / row["rate"] for row in some) / 60
        print(f"{speaker:12}  {len(some):10,}  {minutes:7.2f}  {sum(row['usual'] == 0 for row in some):10,}")


def main(
    folder: Annotated[Path, typer.Argument(help="Clone of the dataset, or any folder with its files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and audio/.")],
) -> None:
    """Turn the Free Spoken Digit Dataset into a manifest and a store of samples."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
