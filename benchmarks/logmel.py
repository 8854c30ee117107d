"""Log-mel features: 80 bins, 25 ms windows every 10 ms at 16 kHz."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Case
from benchmarks.passes import drawn
from benchmarks.setting import Setting
from seqformer.frontends.audio import LogMel
from seqformer.timm_import import import_timm

RATE = 16_000  # Hz
WINDOW, HOP, FFT, MELS = 400, 160, 512, 80


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


PEERS = {
    "librosa": librosa,
    "torchaudio MelSpectrogram": torchaudio,
    "torchaudio kaldi fbank": torchaudio_kaldi,
    "transformers Parakeet": transformers,
    "kaldi-native-fbank": kaldi_native_fbank,
}


def require_cpu(device: str) -> None:
    if device != "cpu":
        raise ImportError("for CPUs only")


def cases(setting: Setting) -> Iterator[list[Case]]:
    runs = {"seqformer": ours(setting.device)} | setting.built(PEERS, setting.device)
    for clips, seconds in [(2, 1)] if setting.quick else [(1, 15), (16, 15)]:
        x = 0.1 * drawn(clips, seconds * RATE).to(setting.device)
        rate = {"count": clips * seconds, "unit": "x real time"}
        yield [
            Case(f"{clips} x {seconds} s", who, lambda run=run, x=x: run(x), peak=True, **rate)
            for who, run in runs.items()
        ]
