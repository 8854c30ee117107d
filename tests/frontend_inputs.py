"""Raw inputs for every frontend: what an item of a number of frames holds, and how a batch of them is padded."""

import numpy as np
import torch

CHANNELS = 6
LOGMEL = dict(rate=4000, mels=12)  # a hop of 40 samples, and widths small enough for hundreds of models
# Everything that published models do otherwise, at once.
PUBLISHED = dict(normalize="bin", correction=1, frames="floor", mel_scale="slaney", mel_norm="slaney", periodic=False)
PUBLISHED |= dict(fft=256, guard="add", floor=2.0**-24, top_db=60.0)
DENSE = {"name": "dense", "channels": CHANNELS}
LANDMARKS = dict(points=7, coordinates=2)
TOKENS = dict(vocab=[5, 3], width=4, values=2)
FRONTENDS = {
    "logmel": [LOGMEL | {"normalize": kind} for kind in ("utterance", "bin", "none")] + [LOGMEL | PUBLISHED],
    "gammatone": [
        dict(rate=4000, bands=6, low_hz=300, normalize=kind, compression=compression)
        for kind, compression in (("utterance", "root"), ("bin", "log"), ("none", "root"))
    ],
    "dense": [
        *[{"channels": CHANNELS, "normalize": kind} for kind in ("none", "item")],
        {"channels": CHANNELS, "normalize": "fold", "static": 2, "clip": 1.5, "differences": [1, 3]},
    ],
    "landmarks": [
        LANDMARKS | dict(reference=[2, 3]),
        LANDMARKS | dict(width=8, conv=4, differences=[1], parts={"hand": "0:3", "face": [3, 6]}),
        LANDMARKS | dict(width=8, standardize=False, parts={"hand": "0:3"}),
    ],
    "tokens": [TOKENS | {"start_end": True}, TOKENS | {"width": [4, 3, 5], "mix": "concat"}],
    "spectrogram_cnn": [
        dict(model="resnet18", stage=1, frontend={"name": "logmel"} | LOGMEL),
        dict(model="mobilenetv3_small_100", stage=1, channels=2),
    ],
    "best_rq": [
        dict(frontend={"name": "logmel"} | LOGMEL, start=0.1, span=5, stride=3, vocab=20, width=3),
        dict(frontend=DENSE | {"normalize": "fold"}, start=0.2, span=2, stride=1, vocab=9),
    ],
    "pair": [
        dict(frontend=DENSE, heads=2, channels=[3], kernel=3),
        dict(frontend={"name": "tokens"} | TOKENS, heads=2, blocks=3, tracks=2, kind="residual", channels=[3, 3])
        | dict(kernel=5, log_floor=1e-3, scale=None),
    ],
}
FRONTS = [{"name": name} | keywords for name, cases in FRONTENDS.items() for keywords in cases]
TIME_AXES = {"pair": 2, "static": 0}  # of fields where it is not the first alone
FILLS = {"zeros": 0.0, "noise": None, "nan": float("nan"), "huge": 1e38}


def make_inputs(frontend, frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The fields that a frontend reads, of one item."""
    kind = type(frontend).__name__
    if kind == "Pair":
        shape = (frames, frames, frontend.tracks)
        return make_inputs(frontend.frontend, frames, rng) | {"pair": rng.uniform(size=shape).astype(np.float32)}
    if kind == "BestRQ":
        return make_inputs(frontend.frontend, frames, rng)
    if kind == "Tokens":
        x = np.stack([rng.integers(size, size=frames) for size in frontend.vocab], axis=1)
        return {"x": x, "values": rng.normal(size=(frames, frontend.values)).astype(np.float32)}
    shape = frontend.shape if kind == "Landmarks" else (CHANNELS,)
    if kind in ("LogMel", "Gammatone", "SpectrogramCNN"):
        # As much as gives this many frames, whichever way the frontend counts them.
        down = getattr(frontend, "frames", "ceil") == "floor"
        frames = frames * frontend.hop + (1 if down else -1) * int(rng.integers(frontend.hop))
        shape = (12, 2)
        if kind != "SpectrogramCNN" or frontend.frontend is not None:
            return {"x": rng.normal(0, 0.1, frames).astype(np.float32)}
    x = rng.normal(0, 1, (frames, *shape)).astype(np.float32)
    if frames > 5:
        x[2, 1] = np.nan  # a missing value is no padding
    static = getattr(frontend, "static", 0)
    return {"x": x} | ({"static": rng.normal(size=static).astype(np.float32)} if static else {})


def pad_inputs(items: list[dict[str, np.ndarray]], size: int, fill: str) -> dict[str, torch.Tensor]:
    """Fields of all items, (B, size, ...), with what ``fill`` names in place of the zeros of collate."""
    padded, generator = {}, torch.Generator().manual_seed(size)
    for name, first in items[0].items():
        axes = TIME_AXES.get(name, 1)
        shape = (len(items), *[size] * axes, *first.shape[axes:])
        if first.dtype.kind == "i":
            full = torch.randint(10, shape, generator=generator) if FILLS[fill] is None else torch.zeros(shape).long()
            full = full if fill in ("noise", "zeros") else full - 2**62
        else:
            noise = FILLS[fill] is None
            full = 10 * torch.randn(shape, generator=generator) if noise else torch.full(shape, FILLS[fill])
        for row, item in enumerate(items):
            array = torch.from_numpy(item[name])
            full[(row, *(slice(length) for length in array.shape))] = array
        padded[name] = full
    return padded
