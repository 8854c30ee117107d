"""A folder in LibriSpeech layout -> manifest and store: ``python -m competitions.librispeech.prepare FOLDER OUT``.

FOLDER holds ``<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.{flac,opus,wav}`` with one
``<speaker>-<chapter>.trans.txt`` per chapter (id, space, text). Split folders may have any name; FOLDER may also hold
one ``LibriSpeech`` folder, or be one split. OUT gets ``manifest.parquet`` and ``audio/``, the decoded samples (int16,
16 kHz).

Every transcript is held against every audio file, and every file is decoded to its end: after one fault nothing is
written.
"""

import os
import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer

RATE = 16_000  # Hz of the stored samples
AUDIO = (".flac", ".opus", ".wav")
TRANSCRIPT = ".trans.txt"
MOST_SAMPLES = 2**32  # a FLAC written to a pipe has no length, and libsndfile then states 2**63 - 1
UNKNOWN_SIZE = 0x7FFF_F000  # a WAV written to a pipe states this many bytes or more, because nobody knew the length


@dataclass(frozen=True)
class Utterance:
    """One audio file with its transcript, not decoded yet."""

    id: str
    path: Path
    split: str
    speaker: str
    chapter: str
    text: str


class Faults:
    """Everything found wrong with a corpus, by kind, to be told in one line."""

    def __init__(self, root: Path):
        self.root = root
        self.found: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str, path: Path | None = None, reason: str = "") -> None:
        """Note one fault of row ``name`` in the file at ``path``."""
        place = ": ".join(filter(None, [str(path.relative_to(self.root)) if path else "", reason]))
        self.found[kind].append(f"{name} ({place})" if place else name)

    def check(self) -> None:
        """Raise one InputError that counts each kind and names its first rows and files; nothing if all is well."""
        kinds = [f"{kind} ({len(rows)}): {seqformer.first_few(rows)}" for kind, rows in self.found.items()]
        if kinds:
            raise seqformer.InputError(f"{self.root}: {'; '.join(kinds)}. Mend or remove them, then prepare again")


def find_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Audio files and transcript files anywhere below a folder, sorted; hidden ones (``._*`` of macOS) left out."""
    audio, transcripts = [], []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(AUDIO):
                audio.append(Path(folder, name))
            elif name.endswith(TRANSCRIPT):
                transcripts.append(Path(folder, name))
    return sorted(audio), sorted(transcripts)


def corpus_root(folder: Path) -> Path:
    """The folder that holds the splits: the published archives unpack into one named LibriSpeech."""
    return folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder


def find_utterances(folder: Path) -> list[Utterance]:
    """All utterances of a corpus, sorted by split, speaker, chapter and number. Raises InputError on any fault."""
    if not folder.is_dir():
        raise seqformer.InputError(f"{folder} is not a folder; give the one that holds the LibriSpeech split folders")
    root = corpus_root(folder)
    audio, transcripts = find_files(root)
    depths = {len(path.relative_to(root).parts) for path in audio + transcripts}
    if not depths & {3, 4}:
        raise seqformer.InputError(
            f"{root} is not in LibriSpeech layout: no <split>/<speaker>/<chapter>/ with {', '.join(AUDIO)} "
            f"or {TRANSCRIPT} files in it (found {len(audio)} audio files elsewhere)"
        )
    faults = Faults(root)
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
    root: Path, audio: list[Path], one_split: bool, faults: Faults
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


def read_transcripts(transcripts: list[Path], faults: Faults) -> dict[str, tuple[str, Path]]:
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
    placed: dict[str, tuple[Path, str, str, str]], texts: dict[str, tuple[str, Path]], faults: Faults
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


def is_cut_short(path: Path) -> bool:
    """Whether a WAV or Ogg file ends before its own structure says.

    libsndfile reads such a file without complaint and returns less audio, so that the text no longer fits; for FLAC it
    raises by itself.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"RIFF":
            while len(head := file.read(8)) == 8:
                name, size = struct.unpack("<4sI", head)
                if name == b"data":
                    return size < UNKNOWN_SIZE and file.tell() + size > path.stat().st_size
                file.seek(size + size % 2, os.SEEK_CUR)
            return True
        if start[:4] != b"OggS":
            return False
        pages = start + file.read()
    position, last_flag = 0, 0
    while pages[position : position + 4] == b"OggS" and position + 27 <= len(pages):
        segments = pages[position + 27 : position + 27 + pages[position + 26]]
        last_flag = pages[position + 5] & 4  # RFC 3533: bit 2 marks the last page of a stream
        position += 27 + pages[position + 26] + sum(segments)
    return not last_flag or position > len(pages)


def read_pcm(path: Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """Samples int16 (T,) of one mono file and their rate in Hz; resampled if ``rate`` asks for another than the file's.

    Raises InputError with the bare reason (no file name) when the file is empty, cut short, damaged or not mono.
    """
    import soundfile

    try:
        if not path.stat().st_size:
            raise seqformer.InputError("the file has 0 bytes")
        if is_cut_short(path):
            raise seqformer.InputError("the file is cut short")
        with soundfile.SoundFile(path) as file:
            stated, found, channels = file.frames, file.samplerate, file.channels
            if stated > MOST_SAMPLES:
                raise seqformer.InputError("the file does not state its length; encode it again")
            # libsndfile does not scale float samples in [-1, 1] when asked for integers: nearly all would become 0
            is_float = file.subtype in ("FLOAT", "DOUBLE")
            samples = file.read(dtype="float32" if is_float else "int16")
    except (OSError, soundfile.SoundFileError) as error:
        raise seqformer.InputError(getattr(error, "error_string", str(error)).rstrip(".")) from error
    if channels != 1:
        raise seqformer.InputError(f"{channels} channels; mix them down to one")
    if not len(samples):
        raise seqformer.InputError("the file has no samples")
    if len(samples) != stated:
        raise seqformer.InputError(f"damaged: {len(samples)} of {stated} samples can be decoded")
    if is_float:
        if not np.isfinite(samples).all():
            raise seqformer.InputError("samples are NaN or infinite")
        samples = to_int16(samples * 32768)
    if rate is None or rate == found:
        return samples, found
    return to_int16(seqformer.resample(samples.astype(np.float32), found, rate)), rate


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Round float samples in int16 units, clipped to what int16 holds."""
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def decode(utterances: Iterable[Utterance], rate: int | None, workers: int) -> Iterator[tuple[Utterance, tuple | str]]:
    """Each utterance with ``read_pcm``'s answer, or the reason why there is none; in order, a few files ahead.

    Threads are enough, because libsndfile decodes outside Python's lock; the short queue bounds the memory.
    """

    def read(path: Path) -> tuple | str:
        try:
            return read_pcm(path, rate)
        except seqformer.InputError as error:
            return str(error)

    pending: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for utterance in utterances:
            pending.append((utterance, pool.submit(read, utterance.path)))
            if len(pending) >= 8 * workers:
                first, answer = pending.popleft()
                yield first, answer.result()
        for first, answer in pending:
            yield first, answer.result()


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
    manifest, is_new = out / "manifest.parquet", not out.exists()
    try:
        with seqformer.StoreWriter(out / "audio", dtype="int16") if store else nullcontext() as writer:
            rows = read_rows(folder, utterances, writer)
            manifest.unlink(missing_ok=True)  # the old one must never point into the new store
        seqformer.write_manifest(rows, manifest)
    finally:
        if is_new:
            with suppress(OSError):  # removes only an empty folder: what the store writer leaves after a failure
                out.rmdir()
    print_summary(rows)
    return manifest


def read_rows(folder: Path, utterances: list[Utterance], writer) -> list[dict]:
    """Decode all utterances into the store, if there is one, and return their manifest rows. Raises InputError."""
    faults, rows = Faults(folder), []
    for utterance, answer in decode(utterances, RATE if writer else None, workers=min(os.cpu_count() or 1, 16)):
        if isinstance(answer, str):
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
