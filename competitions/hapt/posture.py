"""The frame of the body: phones sit at the waist turned every way, and that turn is most of what users differ in."""

import numpy as np

MOVING = 0.02  # variance of the acceleration (g^2) above which one walks
UPRIGHT, LYING = 0.9, 0.5  # gravity along the body (g) above which it is upright, and below which it lies


def body_frame(signals: np.ndarray, rate: int) -> np.ndarray:
    """Signals (T, 6), acceleration and turning rate, turned once for a whole recording, by nothing but its own signals.

    The first axis is up: the mean acceleration while moving upright, for one walks so. The second is the direction of
    gravity while lying, at a right angle to it; without such frames, the second axis of the phone made so.
    """
    acc = signals[:, :3].astype(np.float64)
    level = smoothed(acc, 2 * rate)
    moving = smoothed(np.square(acc - level).sum(axis=1, keepdims=True), 2 * rate)[:, 0] > MOVING
    active = level[moving] if moving.any() else level
    up = unit(active.mean(axis=0))
    up = unit(active[active @ up > UPRIGHT].mean(axis=0)) if (active @ up > UPRIGHT).any() else up
    lying = level[level @ up < LYING]
    ahead = lying.mean(axis=0) if len(lying) else np.array([0.0, 1.0, 0.0])
    ahead = unit(ahead - (ahead @ up) * up)
    axes = np.stack([up, ahead, np.cross(up, ahead)])
    return (signals.reshape(-1, 2, 3) @ axes.T).reshape(-1, 6).astype(np.float32)


def smoothed(x: np.ndarray, frames: int) -> np.ndarray:
    """Mean (T, C) of so many frames around each, fewer at the ends."""
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    first = (np.arange(len(x)) - frames // 2).clip(0)
    last = (np.arange(len(x)) + (frames + 1) // 2).clip(max=len(x))
    return (total[last] - total[first]) / (last - first)[:, None]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-9)
