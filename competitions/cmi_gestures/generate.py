"""Made-up files with the names and columns of CMI: ``python -m competitions.cmi_gestures.generate OUT``.

A wrist moves from rest to a place of the gesture's own, waits, and turns to and fro about an axis at a pace of its own;
what is near and warm there is seen by the other sensors. Some subjects are left-handed, some sequences lack a sensor.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.cmi_gestures.columns import ACCELERATION, PIXELS, ROTATION, SENSORS, THERMOPILES
from competitions.cmi_gestures.motion import GRAVITY, matrices

TARGETS = (
    "Above ear - pull hair", "Cheek - pinch skin", "Eyebrow - pull hair", "Eyelash - pull hair",
    "Forehead - pull hairline", "Forehead - scratch", "Neck - pinch skin", "Neck - scratch",
)  # fmt: skip
OTHERS = (
    "Drink from bottle/cup", "Feel around in tray and pull out an object", "Glasses on/off",
    "Pinch knee/leg skin", "Pull air toward your face", "Scratch knee/leg skin", "Text on phone",
    "Wave hello", "Write name in air", "Write name on leg",
)  # fmt: skip
BEHAVIORS = ("Moves hand to target location", "Hand at target location", "Performs gesture")
MIRROR = np.array([1.0, 1.0, -1.0, -1.0])  # of a quaternion, reflected in x


def turn(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Quaternions (T, 4) of rotations about one axis."""
    axis = axis / np.linalg.norm(axis)
    return np.column_stack([np.cos(angle / 2), np.sin(angle / 2)[:, None] * axis])


def times(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products (T, 4) of quaternions: the second rotation, then the first."""
    w, v, u, s = first[:, :1], first[:, 1:], second[:, 1:], second[:, :1]
    return np.concatenate([w * s - (v * u).sum(axis=1, keepdims=True), w * u + s * v + np.cross(v, u)], axis=1)


def sequence(gesture: int, frames: int, left: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sensors (T, 332) and which of BEHAVIORS each frame is (T,)."""
    own = np.random.default_rng([7, gesture])  # the place and the axes of a gesture are the same for everyone
    place, axis, pace, reach = own.normal(size=3), own.normal(size=3), own.uniform(0.3, 1.5), own.uniform(0.2, 0.6)
    behavior = np.digitize(np.arange(frames), [frames * rng.uniform(0.2, 0.35), frames * rng.uniform(0.4, 0.55)])
    arrived = (np.arange(frames) / max(1, (behavior == 0).sum())).clip(0, 1)
    swing = np.where(behavior == 2, reach * np.sin(pace * np.arange(frames) * rng.uniform(0.9, 1.1)), 0)
    quaternion = times(turn(place + 0.2 * rng.normal(size=3), 2 * arrived), turn(axis, swing))
    wave = np.gradient(np.gradient(swing)) if frames > 2 else swing
    acceleration = GRAVITY * matrices(quaternion)[:, 2] + 10 * wave[:, None] * axis + 0.3 * rng.normal(size=(frames, 3))
    heat = 24 + own.uniform(0, 8, 5) * arrived[:, None] + 0.5 * rng.normal(size=(frames, 5))
    near = 150 - own.uniform(0, 130, 5) * arrived[:, None] + 5 * rng.normal(size=(frames, 5))
    pixels = (near[..., None] + np.linspace(-20, 20, 64)).round()
    pixels[(pixels > 140) | (pixels < 0)] = -1
    if left:
        acceleration, quaternion = acceleration * [-1, 1, 1], quaternion * MIRROR
        heat, pixels = heat[:, [0, 1, 4, 3, 2]], pixels[:, [0, 1, 4, 3, 2]]
    if rng.random() < 0.05:
        quaternion[:] = np.nan
    if rng.random() < 0.05:
        pixels[:, rng.integers(5)] = np.nan
    return np.concatenate([acceleration, quaternion, heat, pixels.reshape(frames, -1)], axis=1).round(3), behavior


def rows_of(name: str, subject: str, gesture: int, frames: int, left: bool, rng: np.random.Generator):
    """The lines of one sequence, with Kaggle's columns."""
    import polars

    x, behavior = sequence(gesture, frames, left, rng)
    found = {"row_id": [f"{name}_{frame:06d}" for frame in range(frames)]}
    found |= {"sequence_type": "Target" if gesture < len(TARGETS) else "Non-Target", "sequence_id": name}
    found |= {"sequence_counter": range(frames), "subject": subject, "orientation": "Seated Straight"}
    found |= {"behavior": [BEHAVIORS[number] for number in behavior]}
    found |= {"phase": ["Gesture" if number == 2 else "Transition" for number in behavior]}
    found |= {"gesture": (TARGETS + OTHERS)[gesture]}
    names = (*ACCELERATION, *ROTATION, *THERMOPILES, *PIXELS)
    return polars.DataFrame(found).hstack(polars.DataFrame(x, schema=list(names)).fill_nan(None).select(SENSORS))


def generate(
    out: Path, subjects: int = 20, repeats: int = 1, frames: tuple[int, int] = (40, 80), seed: int = 0
) -> None:
    """Write ``train.csv``, ``train_demographics.csv``, and the same of test: one subject for ten of training."""
    import polars

    rng = np.random.default_rng(seed)
    labels = ["sequence_type", "orientation", "behavior", "phase", "gesture"]
    with seqformer.replace_folder(out) as folder:
        for split, count in (("train", subjects), ("test", max(1, subjects // 10))):
            people, tables = [], []
            for number in range(count):
                subject, left = f"SUBJ_{split == 'test':d}{number:05d}", number % 5 == 1
                people.append(
                    {"subject": subject, "adult_child": 1, "age": int(rng.integers(18, 60)), "sex": number % 2}
                )
                people[-1] |= {"handedness": int(not left), "height_cm": float(rng.integers(150, 195))}
                people[-1] |= {"shoulder_to_wrist_cm": 52, "elbow_to_wrist_cm": 26.0}
                for gesture in rng.permutation(np.repeat(np.arange(len(TARGETS + OTHERS)), repeats)).tolist():
                    name = f"SEQ_{split == 'test':d}{number:03d}{len(tables):05d}"
                    tables.append(rows_of(name, subject, gesture, int(rng.integers(*frames)), left, rng))
            table = polars.concat(tables)
            (table.drop(labels) if split == "test" else table).write_csv(folder / f"{split}.csv")
            polars.DataFrame(people).write_csv(folder / f"{split}_demographics.csv")


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    subjects: Annotated[int, typer.Option(help="Subjects to train on, with each gesture once.")] = 20,
    seed: int = 0,
) -> None:
    """Make up the files of the CMI competition."""
    generate(out, subjects, seed=seed)


if __name__ == "__main__":
    seqformer.run_command(main)
