"""Log-mel features: 80 bins, 25 ms windows every 10 ms at 16 kHz; and a batch at three speeds before them."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Case
from benchmarks.passes import drawn
from benchmarks.setting import Setting
from seqformer.frontends.audio import LogMel
from seqformer.nn.mask import mask_of
from seqformer.nn.resample import played
from seqformer.timm_import import import_timm

RATE = 16_000  # Hz
WINDOW, HOP, FFT, MELS = 400, 160, 512, 80
STRETCHES = [(10, 9), (1, 1), (10, 11)]  # of speeds 0.9, 1, 1.1


def ours(device: str) -> Callable[[torch.Tensor], object]:
    frontend = LogMel().to(device).eval()
    return torch.no_grad()(lambda x: frontend({"x": x}, torch.ones_like(x, dtype=torch.bool)))


def torchaudio(device: str) -> Callable[[torch.Tensor], object]:
    from torchaudio.transforms import MelSpectrogram

    mel = MelSpectrogram(RATE, FFT, WINDOW, HOP, n_mels=MELS).to(device)
    return torch.no_grad()(lambda x: mel(x).clamp(min=1e-8).log())


def torchaudio_kaldi(device: str) -> Callable[[torch.Tensor], object]:
    from torchaudio.compliance.kaldi import fbank

    return torch.no_grad()(lambda x: [fbank(one[None], num_mel_bins=MELS) for one in x])


def librosa(device: str) -> Callable[[torch.Tensor], object]:
    require_cpu(device)
    import librosa
    import numpy as np

    keywords = {"sr": RATE, "n_fft": FFT, "win_length": WINDOW, "hop_length": HOP, "n_mels": MELS}
    return lambda x: [np.log(librosa.feature.melspectrogram(y=one, **keywords).clip(1e-8)) for one in x.numpy()]


def transformers(device: str) -> Callable[[torch.Tensor], object]:
    require_cpu(device)
    import_timm()  # makes torchvision, which transformers asks for, importable beside a CPU build of torch
    from transformers import ParakeetFeatureExtractor

    extract = ParakeetFeatureExtractor(feature_size=MELS, sampling_rate=RATE, n_fft=FFT)
    return lambda x: extract(list(x.numpy()), sampling_rate=RATE, return_tensors="pt")


def kaldi_native_fbank(device: str) -> Callable[[torch.Tensor], object]:
    require_cpu(device)
    import kaldi_native_fbank as native

    options = native.FbankOptions()
    options.mel_opts.num_bins = MELS

    def one(samples: torch.Tensor) -> list:
        computer = native.OnlineFbank(options)
        computer.accept_waveform(RATE, samples.tolist())
        return [computer.get_frame(frame) for frame in range(computer.num_frames_ready)]

    return lambda x: [one(samples) for samples in x]


def speeds_ours(device: str) -> Callable[[torch.Tensor], object]:
    def play(x: torch.Tensor) -> torch.Tensor:
        rows = [(x.shape[1], *STRETCHES[item % len(STRETCHES)]) for item in range(len(x))]
        sizes = [-(-samples * up // down) for samples, up, down in rows]
        mask = mask_of(torch.tensor(sizes, device=x.device), max(sizes))
        return played({"x": x, "x_speed": torch.tensor(rows)}, mask)

    return torch.no_grad()(play)


def speeds_torchaudio(device: str) -> Callable[[torch.Tensor], object]:
    from torchaudio.transforms import Resample

    parts = [Resample(down, up).to(device) for up, down in STRETCHES]
    return torch.no_grad()(lambda x: [part(x[item :: len(parts)]) for item, part in enumerate(parts)])


def speeds_scipy(device: str) -> Callable[[torch.Tensor], object]:
    require_cpu(device)
    from scipy.signal import resample_poly

    def play(x: torch.Tensor) -> list:
        return [resample_poly(one, *STRETCHES[item % len(STRETCHES)]) for item, one in enumerate(x.numpy())]

    return play


PEERS = {
    "librosa": librosa,
    "torchaudio MelSpectrogram": torchaudio,
    "torchaudio kaldi fbank": torchaudio_kaldi,
    "transformers Parakeet": transformers,
    "kaldi-native-fbank": kaldi_native_fbank,
}
SPEED_PEERS = {"torchaudio Resample": speeds_torchaudio, "scipy, an item at a time": speeds_scipy}


def require_cpu(device: str) -> None:
    if device != "cpu":
        raise ImportError("for CPUs only")


def cases(setting: Setting) -> Iterator[list[Case]]:
    runs = {"seqformer": ours(setting.device)} | setting.built(PEERS, setting.device)
    for clips, seconds in [(2, 1)] if setting.quick else [(1, 15), (16, 15)]:
        yield compared(f"{clips} x {seconds} s", runs, 0.1 * drawn(clips, seconds * RATE).to(setting.device))
    runs = {"seqformer": speeds_ours(setting.device)} | setting.built(SPEED_PEERS, setting.device)
    clips, seconds = (3, 1) if setting.quick else (15, 15)
    what = f"speeds 0.9, 1, 1.1 of {clips} x {seconds} s"
    yield compared(what, runs, 0.1 * drawn(clips, seconds * RATE).to(setting.device))


def compared(what: str, runs: dict[str, Callable], x: torch.Tensor) -> list[Case]:
    rate = {"count": x.numel() / RATE, "unit": "x real time"}
    return [Case(what, who, lambda run=run: run(x), peak=True, **rate) for who, run in runs.items()]
