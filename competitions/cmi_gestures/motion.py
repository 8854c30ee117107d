"""How a wrist moves and turns, from its accelerations and orientations. Quaternions are (T, 4): w, x, y, z."""

import numpy as np

GRAVITY = 9.81  # m/s^2, upwards in the world, as an accelerometer at rest reads it


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) from the wrist to the world, NaN where a part is missing or all are 0."""
    norm = np.linalg.norm(quaternions, axis=1, keepdims=True)
    w, x, y, z = (quaternions / np.where(norm > 0, norm, np.nan)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.moveaxis(np.array(rows), -1, 0)


def mirrored(acceleration: np.ndarray, turned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The other hand's acceleration (T, 3) and rotations (T, 3, 3): wrist and world reflected in x."""
    mirror = np.array([-1.0, 1.0, 1.0])
    return acceleration * mirror, turned * np.outer(mirror, mirror)


def angular_velocity(turned: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) -> (T, 3) radians a frame about the wrist's axes, to the next frame; the last turns by 0."""
    step = np.einsum("tji,tjk->tik", turned[:-1], turned[1:])
    cosine = ((np.trace(step, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)
    angle = np.arccos(cosine)[:, None]
    skew = np.stack([step[:, 2, 1] - step[:, 1, 2], step[:, 0, 2] - step[:, 2, 0], step[:, 1, 0] - step[:, 0, 1]], 1)
    length = np.linalg.norm(skew, axis=1, keepdims=True)  # 2 sin(angle): 0 at rest, and at half a turn
    found = np.where(length > 1e-9, skew * angle / np.maximum(length, 1e-9), 0.5 * skew)
    return np.concatenate([found, np.zeros((1, 3)) + 0 * turned[-1:, 0]])


def linear_acceleration(acceleration: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Acceleration (T, 3) in the wrist's axes, without gravity."""
    return acceleration - GRAVITY * turned[:, 2]


def motion(acceleration: np.ndarray, quaternions: np.ndarray, left: bool = False) -> np.ndarray:
    """(T, 15): acceleration, the first two columns of the rotation (Zhou et al. 2019), angular velocity, linear
    acceleration; NaN where missing. ``left`` hands become right ones.
    """
    turned = matrices(quaternions)
    if left:
        acceleration, turned = mirrored(acceleration, turned)
    columns = turned[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    parts = [acceleration, columns, angular_velocity(turned), linear_acceleration(acceleration, turned)]
    return np.concatenate(parts, axis=1)
