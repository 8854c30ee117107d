"""Made-up clips in Kaggle's format: ``python -m competitions.asl_fingerspelling.generate OUT``.

Each character is a hand shape of its own (which fingers are bent, and how the hand is turned), held for
some frames and reached through a relaxed hand, so that a double letter shows. Signers differ in size, place, slant,
pace and hand; there is noise, frames without the hand, and another hand that is mostly out of sight. The tables and
landmark files have the names, columns and types of the real ones; points that nobody reads lie still.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.asl_fingerspelling.points import ALL_COLUMNS, KINDS
from competitions.asl_fingerspelling.prepare import CHARACTERS, TABLES

CHARACTER_LIST = " !#$%&'()*+,-./0123456789:;=?@[_abcdefghijklmnopqrstuvwxyz~"  # the real file's 59, in its order
ALPHABET = "abcdeghiklmnorstu 0123"  # those that made-up phrases are of
CLIPS_A_FILE = 100
BODY_SEED = 7  # shapes and bodies are the same in every set


def hand_shapes() -> dict[str, np.ndarray]:
    """{character: (21, 3)}: the right hand, wrist at the origin, a unit long; the relaxed hand is ``""``."""
    rng = np.random.default_rng(BODY_SEED)
    codes = [np.array([0.5] * 5 + [0.0])]
    while len(codes) <= len(ALPHABET):
        code = np.array([*rng.choice([0.0, 1.0], 5), rng.choice([-1.0, 0.0, 1.0])])
        if min(np.abs(code - other).sum() for other in codes[1:] or codes) >= 2:
            codes.append(code)
    return {character: hand(code[:5], 0.9 * code[5]) for character, code in zip(["", *ALPHABET], codes, strict=True)}


def hand(bends: np.ndarray, turn: float) -> np.ndarray:
    """Points (21, 3) of a hand: five fingers bent, 0 (straight) to 1, and the whole turned by radians."""
    points = np.zeros((21, 3))
    for finger, bend in enumerate(bends):
        angle = (finger - 2) * 0.3 + (-0.5 if finger == 0 else 0)
        for joint in range(4):
            reach = 0.45 + 0.2 * joint * (1 - 0.8 * bend)
            points[1 + 4 * finger + joint] = reach * np.sin(angle), -reach * np.cos(angle), -0.25 * bend * joint
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def signer(rng: np.random.Generator) -> dict:
    """What is a signer's own."""
    return {
        "size": rng.uniform(0.12, 0.2),
        "place": rng.uniform([0.3, 0.5], [0.45, 0.7]),
        "slant": rng.normal(0, 0.15),
        "hold": rng.integers(3, 6),
        "left": rng.random() < 0.3,
        "bend": 1 + rng.normal(0, 0.05, (21, 3)),
    }


def hand_track(phrase: str, who: dict, shapes: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Points (T, 21, 3) of a hand that spells a phrase, in the picture's coordinates."""
    frames = [shapes[""]] * int(rng.integers(1, 5))
    for character in phrase:
        way = (shapes[""] + shapes[character]) / 2
        frames += [way, *[shapes[character]] * int(who["hold"] + rng.integers(0, 3)), way, shapes[""]]
    frames += [shapes[""]] * int(rng.integers(0, 4))
    x = np.stack(frames) * who["bend"] + rng.normal(0, 0.05, (len(frames), 21, 3))
    cos, sin = np.cos(who["slant"]), np.sin(who["slant"])
    x[..., :2] = x[..., :2] @ np.array([[cos, sin], [-sin, cos]])
    sway = np.cumsum(rng.normal(0, 0.003, (len(x), 1, 2)), axis=0)
    x = x * who["size"]
    x[..., :2] += who["place"] + sway
    return x


def clip(phrase: str, who: dict, shapes: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Values (T, 1629) of a clip, float32, in the order of ``ALL_COLUMNS``."""
    signing = hand_track(phrase, who, shapes, rng)
    signing[rng.random(len(signing)) < 0.05] = np.nan
    other = hand_track(phrase[:1], who, {key: shapes[""] for key in shapes}, rng)
    other = np.resize(other, signing.shape) + np.array([0.3, 0.2, 0])
    if rng.random() < 0.7:
        other[:] = np.nan
    body = np.random.default_rng(BODY_SEED)
    still = {kind: body.uniform([0.35, 0.1, -0.1], [0.65, 0.4, 0.1], (KINDS[kind], 3)) for kind in ("face", "pose")}
    still = {kind: np.broadcast_to(points, (len(signing), *points.shape)).copy() for kind, points in still.items()}
    still["pose"][:, [16, 18, 20, 22], :2] = np.nan_to_num(signing[:, :1, :2], nan=0.5)
    points = np.concatenate([still["face"], other, still["pose"], signing], axis=1)
    if who["left"]:  # the picture mirrored: every left point is now a right one
        points = np.concatenate([still["face"], signing, still["pose"], other], axis=1)
        points[..., 0] = 1 - points[..., 0]
    return points.transpose(0, 2, 1).reshape(len(points), -1).astype(np.float32)


def generate(out: Path, clips: int = 800, supplemental: int = 0, signers: int = 16, seed: int = 0) -> Path:
    """Write ``clips`` and ``supplemental`` clips into ``out`` as the competition has them, and return it."""
    out, shapes = Path(out), hand_shapes()
    people = [signer(np.random.default_rng([seed, number])) for number in range(signers)]
    out.mkdir(parents=True, exist_ok=True)
    (out / CHARACTERS).write_text(json.dumps({symbol: number for number, symbol in enumerate(CHARACTER_LIST)}))
    for first, (split, count) in enumerate({"train": clips, "supplemental": supplemental}.items(), start=1):
        rows = []
        for start in range(0, count, CLIPS_A_FILE):
            path, drawn = f"{split}_landmarks/{1_000_000 * first + start}.parquet", []
            for number in range(start, min(start + CLIPS_A_FILE, count)):
                rng, sequence = np.random.default_rng([seed, first, number]), 10_000 * first + number
                phrase, who = made_up_phrase(rng), int(rng.integers(signers))
                drawn.append((sequence, clip(phrase, people[who], shapes, rng)))
                rows.append((path, 1_000_000 * first + start, sequence, who + 100, phrase))
            write_landmarks(drawn, out / path)
        if rows:
            names = ["path", "file_id", "sequence_id", "participant_id", "phrase"]
            polars.DataFrame(rows, names, orient="row").write_csv(out / TABLES[split])
    return out


def made_up_phrase(rng: np.random.Generator) -> str:
    """3 to 8 characters, here and there a space."""
    letters = rng.choice(list(ALPHABET.replace(" ", "")), int(rng.integers(3, 9)))
    letters[1:-1][rng.random(len(letters) - 2) < 0.1] = " "
    return "".join(letters)


def write_landmarks(clips: list[tuple[int, np.ndarray]], path: Path) -> None:
    """Clips, (sequence, values) each, as a landmark file: missing values are null, the sequence is the index."""
    path.parent.mkdir(exist_ok=True)
    lengths = [len(values) for _, values in clips]
    frames = np.concatenate([np.arange(length, dtype=np.int16) for length in lengths])
    table = polars.DataFrame(np.concatenate([values for _, values in clips]), ALL_COLUMNS, orient="row")
    sequences = np.repeat([sequence for sequence, _ in clips], lengths)
    table = table.fill_nan(None).insert_column(0, polars.Series("frame", frames))
    table.with_columns(sequence_id=polars.Series(sequences)).write_parquet(path)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the files.")],
    clips: Annotated[int, typer.Option(help="Clips of train.csv.")] = 800,
    supplemental: Annotated[int, typer.Option(help="Clips of supplemental_metadata.csv.")] = 0,
    signers: Annotated[int, typer.Option(help="How many people sign.")] = 16,
    seed: int = 0,
) -> None:
    """Make up fingerspelling clips in the format of the competition."""
    generate(out, clips, supplemental, signers, seed)


if __name__ == "__main__":
    seqformer.run_command(main)
