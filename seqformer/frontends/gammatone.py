"""Gammatone features of raw audio: a bank of auditory filters, their mean magnitude, and its tenth root.

Axes: B batch, N samples, T frames, K bands, J blocks, L samples of a filter. Sources: Patterson et al. 1988 (filter),
Glasberg and Moore 1990 (widths and spacing), Slaney 1993, Apple TR 35 (the bank), Schlueter et al. 2007 (the features:
Hann window over the magnitude, tenth root). The Switchboard hybrid has 40 of them. Ours differs from Schlueter's in
spacing bands by equivalent rectangular bandwidth; there is no integration over bands and no cosine transform.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqformer.errors import InputError
from seqformer.frontends.audio import make_spec_augment, normalize_frames
from seqformer.frontends.features import Features
from seqformer.nn.mask import stride_mask, strided, zero_padding
from seqformer.nn.precision import no_autocast
from seqformer.nn.resample import played
from seqformer.registry import register

ORDER = 4
WIDTH = 1.019  # b of an order-4 filter as a share of the bandwidth that it shall have
TAIL = 1e-6  # a filter's response is cut where its magnitude has come down to this share of its largest


def bandwidth(hertz: Tensor) -> Tensor:
    """Equivalent rectangular bandwidth in Hz of the auditory filter at a frequency in Hz."""
    return 24.7 * (4.37e-3 * hertz + 1)


def centres(bands: int, low: float, high: float) -> Tensor:
    """Centre frequencies (bands,) in Hz, float64: equally spaced in the number of bandwidths, both ends included."""
    ends = torch.log1p(4.37e-3 * torch.tensor([low, high], dtype=torch.float64))
    return torch.expm1(torch.linspace(*ends.tolist(), bands, dtype=torch.float64)) / 4.37e-3


def gammatones(hertz: Tensor, rate: int) -> Tensor:
    """Impulse responses (K, L), float64: a t^3 exp(-2 pi b t) cos(2 pi f t), b = 1.019 bandwidths, at t = n / rate.

    a = 2 (2 pi b)^4 / (3! rate) makes the gain at the centre frequency 1. L is where the slowest has come down to
    ``TAIL`` of its largest magnitude.
    """
    decay = 2 * math.pi * WIDTH * bandwidth(hertz)[:, None]
    # In units of 1 / decay the envelope is u^3 exp(-u), largest at u = 3; Newton's steps on its logarithm.
    u, target = 20.0, (ORDER - 1) * (math.log(ORDER - 1) - 1) + math.log(TAIL)
    for _ in range(20):
        u -= ((ORDER - 1) * math.log(u) - u - target) / ((ORDER - 1) / u - 1)
    t = torch.arange(math.ceil(u / float(decay.min()) * rate), dtype=torch.float64) / rate
    scale = 2 * decay**ORDER / math.factorial(ORDER - 1) / rate
    return scale * t ** (ORDER - 1) * torch.exp(-decay * t) * torch.cos(2 * math.pi * hertz[:, None] * t)


@register("frontend", "gammatone")
class Gammatone(nn.Module):
    """inputs["x"] (B, N) samples in [-1, 1] at ``rate`` Hz, mask (B, N) -> Features(x (B, ceil(N / hop), bands), mask).

    Pre-emphasis, ``bands`` gammatone filters from ``low_hz`` to ``high_hz`` (by default 15/16 of half the rate), mean
    of the magnitude under a Hann window, lifted to ``floor``, then its tenth ``root`` or ``log``. Frame t is centred
    on sample t * hop as in logmel; the filters are causal and not aligned, so that low bands answer later (13 ms at
    100 Hz). ``normalize`` and ``spec_augment`` as in logmel.

    Filtering is by FFT of blocks, each of whole hops from the first sample on, so that padding changes no bit of a
    real frame. Beside float64 a magnitude is wrong by 1e-7 of the loudest in the block. Raises InputError when a
    band lies beyond half the rate.
    """

    plays = True  # reads "x_speed", as logmel does

    def __init__(
        self,
        bands: int = 40,
        rate: int = 16000,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 100.0,
        high_hz: float | None = None,
        pre_emphasis: float = 0.97,
        floor: float = 1e-5,
        compression: Literal["root", "log"] = "root",
        normalize: Literal["utterance", "bin", "none"] = "utterance",
        spec_augment: dict[str, Any] | None = None,
    ):
        super().__init__()
        high_hz = 15 / 32 * rate if high_hz is None else high_hz
        if not 0 < low_hz < high_hz < rate / 2:
            raise InputError(f"gammatone: bands from {low_hz} to {high_hz} Hz; expected them between 0 and {rate / 2}")
        self.dim, self.rate = bands, rate
        self.window, self.hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
        self.pre_emphasis, self.floor, self.compression, self.normalize = pre_emphasis, floor, compression, normalize
        taper = torch.hann_window(self.window, dtype=torch.float64)
        self.register_buffer("taper", (taper / taper.sum()).float(), persistent=False)
        filters = gammatones(centres(bands, low_hz, high_hz), rate)
        self.past = filters.shape[1] - 1  # samples before its own that an output feels
        self.fft = 2 ** math.ceil(math.log2(2 * self.past + self.hop))
        self.step = (self.fft - self.past) // self.hop * self.hop
        left = self.window // 2
        self.reach = (left + self.past + 1, self.window - left - 1)  # samples, as of logmel
        spectrum = torch.fft.rfft(filters, n=self.fft).to(torch.complex64)
        self.register_buffer("spectrum", spectrum, persistent=False)
        self.spec_augment = make_spec_augment(spec_augment)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x, frame_mask = played(inputs, mask), stride_mask(mask, self.hop)
        with no_autocast(x):  # features are float32, as in logmel
            x = torch.cat([x[:, :1], x[:, 1:] - self.pre_emphasis * x[:, :-1]], dim=1)
            x = self._magnitudes(zero_padding(x, mask), frame_mask.shape[1]).clamp(min=self.floor)
            x = x.log() if self.compression == "log" else x.pow(0.1)
            x = normalize_frames(x, frame_mask, self.normalize)
        if self.spec_augment is not None:
            x = self.spec_augment(x, frame_mask)
        return Features(x, frame_mask)

    def _magnitudes(self, x: Tensor, frames: int) -> Tensor:
        """Mean magnitudes (B, frames, K) of samples (B, N)."""
        left = self.window // 2
        needed = (frames - 1) * self.hop + self.window - left  # samples from the first to the end of the last window
        blocks = strided(needed, self.step)
        right = max(0, blocks * self.step - x.shape[1])
        x = nn.functional.pad(x, (self.past, right))[:, : self.past + blocks * self.step]
        x_BJF = torch.fft.rfft(x.unfold(1, self.past + self.step, self.step), n=self.fft)
        # Band by band: the filtered samples of all bands at once would be forty times the audio.
        bands = [self._integrated(x_BJF * filter_F, left, frames) for filter_F in self.spectrum]
        return torch.stack(bands, dim=-1)

    def _integrated(self, x_BJF: Tensor, left: int, frames: int) -> Tensor:
        """Blocks of one band's spectrum -> mean magnitudes (B, frames)."""
        y = torch.fft.irfft(x_BJF, n=self.fft)[..., self.past : self.past + self.step].abs().flatten(1)
        return nn.functional.pad(y, (left, self.window)).unfold(1, self.window, self.hop)[:, :frames] @ self.taper
