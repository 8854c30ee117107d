"""A folder in LibriSpeech layout -> manifest and store: ``python -m competitions.librispeech.prepare FOLDER OUT``.

FOLDER holds ``<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.{flac,opus,wav}`` with one
``<speaker>-<chapter>.trans.txt`` per chapter (id, space, text). Split folders may have any name; FOLDER may also hold
one ``LibriSpeech`` folder, or be one split. OUT gets ``manifest.parquet`` and ``audio/``, the decoded samples (int16,
16 kHz).

Every transcript is held against every audio file, and every file is decoded to its end: after one fault nothing is
written.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import seqformer

RATE = 16_000  # Hz of the stored samples
TRANSCRIPT = ".trans.txt"


@dataclass(frozen=True)
class Utterance:
    """One audio file with its transcript, not decoded yet."""

    id: str
    path: Path
    split: str
    speaker: str
    chapter: str
    text: str


def corpus_root(folder: Path) -> Path:
    """The folder that holds the splits: the published archives unpack into one named LibriSpeech."""
    return folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder


def find_utterances(folder: Path) -> list[Utterance]:
    """All utterances of a corpus, sorted by split, speaker, chapter and number. Raises InputError on any fault."""
    if not folder.is_dir():
        raise seqformer.InputError(f"{folder} is not a folder; give the one that holds the LibriSpeech split folders")
    root = corpus_root(folder)
    audio, transcripts = seqformer.find_files(root), seqformer.find_files(root, [TRANSCRIPT])
    depths = {len(path.relative_to(root).parts) for path in audio + transcripts}
    if not depths & {3, 4}:
        raise seqformer.InputError(
            f"{root} is not in LibriSpeech layout: no <split>/<speaker>/<chapter>/ with .flac, .opus, .wav "
            f"or {TRANSCRIPT} files in it (found {len(audio)} audio files elsewhere)"
        )
    faults = seqformer.Faults(root)
    one_split = 4 not in depths
    placed = place_audio(root, audio, one_split, faults)
    texts = read_transcripts(transcripts, faults)
    if not one_split:
        full = {path.relative_to(root).parts[0] for path in audio}
        for split in sorted(root.iterdir()):
            if split.is_dir() and not split.name.startswith(".") and split.name not in full:
                faults.add("split without audio", split.name)
    utterances = match_texts(placed, texts, faults)
    faults.check()
    return sorted(utterances, key=reading_order)


def place_audio(
    root: Path, audio: list[Path], one_split: bool, faults: seqformer.Faults
) -> dict[str, tuple[Path, str, str, str]]:
    """Utterance id -> (file, split, speaker, chapter), read off the path; notes misplaced files and duplicate ids."""
    placed: dict[str, tuple[Path, str, str, str]] = {}
    for path in audio:
        parts = path.relative_to(root).parts
        split, middle = (root.resolve().name, parts[:-1]) if one_split else (parts[0], parts[1:-1])
        if len(middle) != 2 or not path.stem.startswith(f"{middle[0]}-{middle[1]}-"):
            faults.add("audio not at <split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>", path.stem, path)
        elif path.stem in placed:
            faults.add("duplicate id", path.stem, path, f"also {placed[path.stem][0].relative_to(root)}")
        else:
            placed[path.stem] = (path, split, middle[0], middle[1])
    return placed


def read_transcripts(transcripts: list[Path], faults: seqformer.Faults) -> dict[str, tuple[str, Path]]:
    """Utterance id -> (lower-case text, transcript file); notes empty texts, doubled ids and unreadable files."""
    texts: dict[str, tuple[str, Path]] = {}
    for path in transcripts:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            faults.add("unreadable transcript file", path.name, path, str(error))
            continue
        for line in lines:
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            if name in texts:
                faults.add("id with two transcripts", name, path, f"also {texts[name][1].relative_to(faults.root)}")
            elif not text.strip():
                faults.add("empty transcript", name, path)
            texts[name] = (" ".join(text.lower().split()), path)
    return texts


def match_texts(
    placed: dict[str, tuple[Path, str, str, str]], texts: dict[str, tuple[str, Path]], faults: seqformer.Faults
) -> list[Utterance]:
    """Join audio and transcripts by id; notes each that has no partner."""
    for name, (path, *_) in placed.items():
        if name not in texts:
            faults.add("audio without transcript", name, path)
    for name, (_, path) in texts.items():
        if name not in placed:
            faults.add("transcript without audio", name, path)
    return [Utterance(name, *place, texts[name][0]) for name, place in placed.items() if name in texts]


def reading_order(utterance: Utterance) -> tuple:
    """Sort key: split, speaker, chapter, utterance; numbers by value (speaker 84 before 121), names after them."""
    number = utterance.id.removeprefix(f"{utterance.speaker}-{utterance.chapter}-")
    parts = (utterance.speaker, utterance.chapter, number)
    return (utterance.split, *((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts))


def prepare(folder: Path, out: Path, store: bool = True) -> Path:
    """Write ``out/manifest.parquet`` and, if ``store``, ``out/audio``; print a table; return the path of the manifest.

    Without the store the manifest points at the audio files by absolute path, and training decodes them each time.
    Raises InputError, with ``out`` as it was, when anything is wrong with the corpus.
    """
    folder, out = Path(folder), Path(out)
    utterances = find_utterances(folder)
    if out.exists() and not out.is_dir():
        raise seqformer.InputError(f"{out} is a file; the prepared corpus needs a folder")
    if out.resolve().is_relative_to(corpus_root(folder).resolve()):  # it would be taken for a split next time
        raise seqformer.InputError(f"{out} lies inside the corpus {corpus_root(folder)}; choose a folder outside it")
    manifest = out / "manifest.parquet"
    with seqformer.StoreWriter(out / "audio", dtype="int16") if store else nullcontext() as writer:
        rows = read_rows(folder, utterances, writer)
        manifest.unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(rows, manifest)
    print_summary(rows)
    return manifest


def read_rows(folder: Path, utterances: list[Utterance], writer) -> list[dict]:
    """Decode all utterances into the store, if there is one, and return their manifest rows. Raises InputError."""
    faults, rows = seqformer.Faults(folder), []
    answers = seqformer.read_pcm_files([utterance.path for utterance in utterances], RATE if writer else None)
    for utterance, answer in zip(utterances, answers, strict=True):
        if isinstance(answer, seqformer.InputError):
            faults.add("unreadable audio", utterance.id, utterance.path, answer)
            continue
        samples, rate = answer
        row = {"id": utterance.id, "path": "audio" if writer else str(utterance.path.resolve())}
        if writer:
            row["row"] = writer.add(samples)
        row |= {"frames": len(samples), "rate": rate, "text": utterance.text, "speaker": utterance.speaker}
        rows.append(row | {"chapter": utterance.chapter, "split": utterance.split, "seconds": len(samples) / rate})
    faults.check()
    return rows


def print_summary(rows: list[dict]) -> None:
    """One table: split, utterances, hours, speakers, words; with a last line for all splits when there are several."""
    names = dict.fromkeys(row["split"] for row in rows)
    groups = [(name, [row for row in rows if row["split"] == name]) for name in names]
    width = max(map(len, [*names, "split"]))
    print(f"{'split':{width}}  utterances    hours  speakers      words")
    for split, some in groups + ([("all", rows)] if len(groups) > 1 else []):
        hours = sum(row["seconds"] for row in some) / 3600
        speakers, words = len({row["speaker"] for row in some}), sum(len(row["text"].split()) for row in some)
        print(f"{split:{width}}  {len(some):10,}  {hours:7.3f}  {speakers:8,}  {words:9,}")


def main(
    folder: Annotated[Path, typer.Argument(help="Corpus in LibriSpeech layout.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and audio/.")],
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep samples, or point at the files.")] = True,
) -> None:
    """Turn a folder in LibriSpeech layout into a manifest and a store of samples."""
    prepare(folder, out, store)


if __name__ == "__main__":
    seqformer.run_command(main)
