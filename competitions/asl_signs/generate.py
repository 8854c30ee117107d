"""Made-up clips in Kaggle's format: ``python -m competitions.asl_signs.generate OUT``.

Each sign is a path of one hand, or of both, before the face: a slow curve of its own, repeated at the signer's pace.
Signers differ in size, place and slant, and whether they are left-handed; there is noise, and frames without a hand.
Names, columns and types are those of the real files.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer
from competitions.asl_signs.points import ALL_POINTS, START
from competitions.asl_signs.prepare import SIGNS

BODY_SEED = 11  # signs and bodies are the same in every set


def sign_curve(sign: int, time: np.ndarray) -> np.ndarray:
    """Where a hand is (T, 2) at times 0 to 1, about -1 to 1 around its own middle."""
    rng = np.random.default_rng([BODY_SEED, sign])
    angle = 2 * np.pi * time[:, None]
    parts = [rng.normal(0, 1 / n, 2) * np.sin(n * angle + rng.uniform(0, 2 * np.pi, 2)) for n in (1, 2)]
    return 0.6 * sum(parts) + rng.uniform(-0.8, 0.8, 2)


def clip(sign: int, who: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Points (T, 543, 3), NaN where not detected; ``who`` draws what is the signer's own, ``rng`` the rest."""
    body = np.random.default_rng(BODY_SEED)
    points = body.uniform([0.4, 0.2, -0.1], [0.6, 0.45, 0.1], (ALL_POINTS, 3))
    hand = body.normal(0, 0.03, (21, 3))
    size, slant, middle, left = (
        who.uniform(0.8, 1.2),
        who.normal(0, 0.15),
        who.uniform(0.45, 0.55, 2),
        who.random() < 0.3,
    )
    frames, sides = int(rng.integers(15, 45)), {"right_hand": 1, "left_hand": -1}
    x = np.repeat(points[None], frames, axis=0)
    both = sign % 3 == 0
    for name, side in sides.items():
        curve = sign_curve(sign, np.linspace(0, 1, frames))
        track = np.column_stack([0.1 + 0.12 * side * curve[:, 0], 0.3 + 0.15 * curve[:, 1], np.zeros(frames)])
        x[:, START[name] : START[name] + 21] = np.array([0.45, 0, 0]) + track[:, None] + hand * [side, 1, 1]
        if not both and side < 0:
            x[:, START[name] : START[name] + 21] = np.nan
        x[rng.random(frames) < 0.1, START[name] : START[name] + 21] = np.nan
    cos, sin = np.cos(slant), np.sin(slant)
    x[..., :2] = (x[..., :2] - 0.5) @ np.array([[cos, sin], [-sin, cos]]) * size + middle
    x += rng.normal(0, 0.004, x.shape)
    return mirrored(x) if left else x


def mirrored(x: np.ndarray) -> np.ndarray:
    """The hands change sides (T, 543, 3)."""
    left, right = (slice(START[name], START[name] + 21) for name in ("left_hand", "right_hand"))
    x = x.copy()
    x[:, left], x[:, right] = x[:, right].copy(), x[:, left].copy()
    x[..., 0] = 1 - x[..., 0]
    return x


def write_clip(x: np.ndarray, path: Path, first: int) -> None:
    """Points (T, 543, 3) as a landmark file whose frames begin at ``first``; missing values are null."""
    kinds = {"face": 468, "left_hand": 21, "pose": 33, "right_hand": 21}
    types = np.repeat(list(kinds), list(kinds.values())).tolist()
    indices = np.concatenate([np.arange(count) for count in kinds.values()])
    frames = np.repeat(np.arange(first, first + len(x)), ALL_POINTS)
    table = polars.DataFrame({
        "frame": polars.Series(frames, dtype=polars.Int16),
        "type": types * len(x),
        "landmark_index": polars.Series(np.tile(indices, len(x)), dtype=polars.Int16),
        **{axis: x[..., number].ravel() for number, axis in enumerate("xyz")},
    })  # fmt: skip
    table = table.with_columns(polars.col("x", "y", "z").fill_nan(None))
    name = polars.format("{}-{}-{}", "frame", "type", "landmark_index").alias("row_id")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.insert_column(1, table.select(name).to_series()).write_parquet(path)


def generate(out: Path, clips: int = 120, signs: int = 6, signers: int = 6, seed: int = 0) -> Path:
    """Write ``clips`` clips into ``out`` as the competition has them, and return it."""
    out, rows = Path(out), []
    for number in range(clips):
        rng = np.random.default_rng([seed, number])
        sign, who, sequence = int(rng.integers(signs)), int(rng.integers(signers)), 1_000_000 + number
        path = f"train_landmark_files/{1000 + who}/{sequence}.parquet"
        write_clip(clip(sign, np.random.default_rng([seed, 1, who]), rng), out / path, int(rng.integers(0, 90)))
        rows.append((path, 1000 + who, sequence, f"sign_{sign}"))
    polars.DataFrame(rows, ["path", "participant_id", "sequence_id", "sign"], orient="row").write_csv(out / "train.csv")
    (out / SIGNS).write_text(json.dumps({f"sign_{sign}": sign for sign in range(signs)}))
    return out


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the files.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 120,
    signs: Annotated[int, typer.Option(help="How many signs.")] = 6,
    signers: Annotated[int, typer.Option(help="How many people sign.")] = 6,
    seed: int = 0,
) -> None:
    """Make up clips of signs in the format of the competition."""
    generate(out, clips, signs, signers, seed)


if __name__ == "__main__":
    seqformer.run_command(main)
