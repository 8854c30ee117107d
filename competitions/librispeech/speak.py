"""A small spoken corpus in LibriSpeech layout, for want of data: ``python -m competitions.librispeech.speak OUT``.

espeak-ng (from the package espeakng-loader, called through ctypes) reads short command phrases with 48 voices. What
is said, by whom, how fast and how high is a pure function of the seed and is kept in ``plan.tsv``; the audio is not
fixed to the bit, since two calls of espeak-ng in one process differ slightly.
"""

import ctypes
import os
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer

RATE = 16_000  # Hz of the files
SPLIT = "spoken"
NOISE = 3e-4  # standard deviation of the noise floor; digital silence would send every log-mel to its lower limit
# One of each set of homophones at most, and no word with two pronunciations (read, close, live): the text is the truth.
WORDS = """
    turn switch open shut start stop pause play resume cancel set raise lower increase reduce dim find show call send
    bring move lock unlock clean check remind answer follow repeat on off up down left forward under over with without
    please now later again today tomorrow tonight never always kitchen bedroom bathroom garden garage office hallway
    window door light lamp heater fan curtain oven kettle fridge radio television music volume channel speaker alarm
    timer message camera robot vacuum temperature brightness weather battery password yellow red green purple orange
    silver warm cold loud quiet quick slow seven nine five twenty thirty hundred half degrees minutes percent
"""
VOCABULARY = tuple(WORDS.split())


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng language and variant, its sex, pitch (0 to 99) and speed (words per minute)."""

    name: str
    sex: str
    pitch: int
    speed: int


ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
TIMBRES = ("m1", "m3", "m6", "f1", "f3", "f5")


def all_voices() -> tuple[Voice, ...]:
    """Each accent in each timbre, with a pitch and a speed of its own: a fold by voice holds back 16 of 48 voices."""
    rng = np.random.default_rng(48)
    order = rng.permutation([f"{accent}+{timbre}" for accent in ACCENTS for timbre in TIMBRES])
    high = {"M": 0, "F": 12}
    return tuple(
        Voice(name, sex, high[sex] + int(rng.integers(30, 55)), int(rng.integers(145, 190)))
        for name, sex in ((str(name), name[-2].upper()) for name in order)
    )


VOICES = all_voices()


@dataclass(frozen=True)
class Phrase:
    """One line of the plan: what is said and how; silence before and after in milliseconds, level as peak in [0, 1]."""

    id: str
    voice: str
    speed: int
    pitch: int
    lead_ms: int
    tail_ms: int
    level: float
    text: str

    @property
    def folder(self) -> str:
        """``<speaker>/<chapter>``, as in the id."""
        return "/".join(self.id.split("-")[:2])


def plan_phrases(utterances: int = 2400, seed: int = 0) -> list[Phrase]:
    """The plan: phrases of 2 to 6 words, no two alike, shared out evenly over the voices; fixed by the arguments."""
    if utterances < 1:
        raise seqformer.InputError(f"utterances = {utterances}; speak at least 1")
    rng = np.random.default_rng(seed)
    said: set[str] = set()
    phrases = []
    for speaker, numbers in enumerate(np.array_split(np.arange(utterances), len(VOICES)), start=1):
        voice = VOICES[speaker - 1]
        for number in range(len(numbers)):
            while (text := " ".join(rng.choice(VOCABULARY, size=rng.integers(2, 7), replace=False))) in said:
                pass  # a phrase heard in training and again in validation would flatter the score
            said.add(text)
            lead, tail = rng.integers(50, 300, size=2)
            phrases.append(
                Phrase(
                    id=f"{speaker}-{100 + speaker}-{number:04d}",
                    voice=voice.name,
                    speed=voice.speed + int(rng.integers(-20, 21)),
                    pitch=voice.pitch + int(rng.integers(-12, 13)),
                    lead_ms=int(lead),
                    tail_ms=int(tail),
                    level=round(float(rng.uniform(0.25, 0.8)), 3),
                    text=text,
                )
            )
    return phrases


def plan_table(phrases: list[Phrase]) -> str:
    """The plan as tab-separated text with a header line."""
    lines = [[field.name for field in fields(Phrase)], *(map(str, astuple(phrase)) for phrase in phrases)]
    return "".join("\t".join(line) + "\n" for line in lines)


class Espeak:
    """espeak-ng 1.52 through ctypes: ``espeak.say(text, voice, speed, pitch) -> samples``.

    Raises InputError when the package is missing or does not know a voice.
    """

    SYNCHRONOUS, DONT_EXIT, UTF8, CHARACTERS = 2, 0x8000, 1, 1
    SPEED, VOLUME, PITCH = 1, 2, 3

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise seqformer.InputError(
                "speaking a corpus needs espeakng-loader: pip install -c constraints.txt -e '.[demo]'"
            ) from error
        self.data = Path(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, os.fsencode(self.data), self.DONT_EXIT)
        if self.rate <= 0:
            raise seqformer.InputError(f"espeak-ng does not start with the data in {self.data}; install it anew")
        self.chunks: list[np.ndarray] = []
        hear = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._hear = hear(self._take)  # kept: ctypes frees a callback that only C still knows
        self.library.espeak_SetSynthCallback(self._hear)
        # At the default of 100 some voices clip inside espeak-ng.
        self.library.espeak_SetParameter(self.VOLUME, 50, 0)

    def _take(self, samples, count: int, _events) -> int:
        if samples and count:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def set_voice(self, name: str) -> None:
        """Choose ``language`` or ``language+variant``. Raises InputError on an unknown one.

        An unknown language returns a code and keeps the last voice; an unknown variant does so without a code.
        """
        variant = name.partition("+")[2]
        is_known = not variant or (self.data / "voices" / "!v" / variant).is_file()
        if not is_known or self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise seqformer.InputError(f"espeak-ng has no voice {name!r}; known are those in {self.data}")

    def say(self, text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        """Speech as float samples (T,) in [-1, 1] at ``self.rate`` Hz."""
        self.set_voice(voice)
        self.library.espeak_SetParameter(self.SPEED, speed, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        self.chunks.clear()
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        code = self.library.espeak_Synth(data, size, 0, self.CHARACTERS, 0, self.UTF8, None, None)
        if code != 0 or not self.chunks:
            raise seqformer.InputError(f"espeak-ng said nothing for {text!r} with voice {voice} (code {code})")
        return np.concatenate(self.chunks).astype(np.float32) / 32768


@cache
def load_espeak() -> Espeak:
    """The one Espeak of this process: the library keeps its state in globals."""
    return Espeak()


def record(phrase: Phrase, espeak: Espeak, rng: np.random.Generator) -> np.ndarray:
    """Samples int16 (T,) at 16 kHz of one phrase: faint noise, speech at the planned level, faint noise."""
    speech = espeak.say(phrase.text, phrase.voice, phrase.speed, phrase.pitch)
    speech = seqformer.resample(speech, espeak.rate, RATE)
    lead, tail = (RATE * ms // 1000 for ms in (phrase.lead_ms, phrase.tail_ms))
    samples = np.pad(speech * (phrase.level / np.abs(speech).max()), (lead, tail))
    samples += NOISE * rng.standard_normal(len(samples), dtype=np.float32)
    return np.rint(samples * 32767).astype(np.int16)


def write_corpus(root: Path, phrases: list[Phrase], seed: int) -> None:
    """Speak all phrases below ``root``: FLAC files, transcripts, SPEAKERS.TXT and plan.tsv."""
    import soundfile

    espeak, minutes = load_espeak(), dict.fromkeys(VOICES, 0.0)
    for number, phrase in enumerate(phrases):
        samples = record(phrase, espeak, np.random.default_rng((seed, number)))
        folder = root / SPLIT / phrase.folder
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{phrase.id}.flac", samples, RATE, subtype="PCM_16")
        with open(folder / f"{phrase.id.rpartition('-')[0]}.trans.txt", "a", encoding="utf-8") as file:
            file.write(f"{phrase.id} {phrase.text.upper()}\n")
        minutes[VOICES[int(phrase.id.split("-")[0]) - 1]] += len(samples) / RATE / 60
    lines = [";ID |SEX| SUBSET |MINUTES| NAME (espeak-ng voice)\n"]
    for speaker, voice in enumerate(VOICES, start=1):
        lines.append(f"{speaker:<3} | {voice.sex} | {SPLIT} | {minutes[voice]:5.2f} | {voice.name}\n")
    (root / "SPEAKERS.TXT").write_text("".join(lines))
    (root / "plan.tsv").write_text(plan_table(phrases))


def speak(out: Path, utterances: int = 2400, seed: int = 0) -> Path:
    """Speak a corpus into the folder ``out`` and return it; one that already holds the same plan is left as it is.

    Raises InputError when espeak-ng is missing or ``out`` holds anything else.
    """
    out = Path(out)
    phrases = plan_phrases(utterances, seed)
    if out.is_dir() and any(out.iterdir()):
        plan = out / "plan.tsv"
        if plan.is_file() and plan.read_text() == plan_table(phrases):
            return out  # renamed here when it was finished, so it is whole
        raise seqformer.InputError(f"{out} is not empty and holds another corpus; remove it or choose another folder")
    with seqformer.replace_folder(out) as partial:
        write_corpus(partial, phrases, seed)
    return out


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the corpus.")],
    utterances: Annotated[int, typer.Option(help="How many phrases, shared out over the voices.")] = 2400,
    seed: Annotated[int, typer.Option(help="Of the plan: texts, speeds, pitches.")] = 0,
) -> None:
    """Speak a small corpus in LibriSpeech layout."""
    print(f"{utterances} phrases by {len(VOICES)} voices in {speak(out, utterances, seed)}")


if __name__ == "__main__":
    seqformer.run_command(main)
