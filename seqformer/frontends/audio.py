"""Log-mel features of raw audio, on the device of the model, in float32.

Axes: B batch, N samples, T frames, F mel bins. Frame t is centred on sample t * hop and T = ceil(N / hop); samples
before the start and after an item's own end are zeros, alone or in a batch (the usual reflection would make the last
frames depend on the padding).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqformer.frontends.features import Features
from seqformer.nn.mask import lengths_of, stride_mask, zero_padding
from seqformer.registry import register


def mel_filters(mels: int, fft: int, rate: int, low: float, high: float) -> Tensor:
    """Triangular filters (fft // 2 + 1, mels), equally spaced and linear on the HTK mel scale, not area-normalised.

    Source: HTK book, section 5.4 (mel = 1127 ln(1 + f / 700)); the same filters as Kaldi's.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    edges = torch.linspace(*mel(torch.tensor([low, high], dtype=torch.float64)).tolist(), mels + 2, dtype=torch.float64)
    bins = mel(torch.arange(fft // 2 + 1, dtype=torch.float64) * rate / fft)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


class SpecAugment(nn.Module):
    """Mask random frames and mel bins with 0 in training: x (B, T, F), mask (B, T) -> (B, T, F).

    Each item gets ``time_masks`` of int(length * U(0, ``time_share``)) frames within its own length, and
    ``freq_masks`` of a whole number of bins drawn from [0, ``freq_width``). Draws come from torch's generator, which
    the trainer seeds for every step, and do not depend on how far the batch is padded.
    Source: Park et al. 2019 (policy), Squeezeformer's official code (numbers).
    """

    def __init__(self, freq_masks: int, freq_width: int, time_masks: int, time_share: float):
        super().__init__()
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_share = time_masks, time_share

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return x
        B, T, F = x.shape
        frames = lengths_of(mask)[:, None].float()
        width = (frames * torch.rand(B, self.time_masks, device=x.device) * self.time_share).floor()
        start = (torch.rand(B, self.time_masks, device=x.device) * (frames - width + 1)).floor()
        x = x.masked_fill(_covered(start, width, T)[:, :, None], 0)
        width = (torch.rand(B, self.freq_masks, device=x.device) * self.freq_width).floor().clamp(max=F)
        start = (torch.rand(B, self.freq_masks, device=x.device) * (F - width + 1)).floor()
        return x.masked_fill(_covered(start, width, F)[:, None, :], 0)


def _covered(start: Tensor, width: Tensor, size: int) -> Tensor:
    """Spans (B, n) -> (B, size), True inside any of an item's n spans."""
    position = torch.arange(size, device=start.device)
    return ((position >= start[..., None]) & (position < (start + width)[..., None])).any(dim=1)


@register("frontend", "logmel")
class LogMel(nn.Module):
    """inputs["x"] (B, N) samples in [-1, 1] at ``rate`` Hz, mask (B, N) -> Features(x (B, ceil(N / hop), mels), mask).

    Pre-emphasis, periodic Hann window, power spectrum, mel filters, natural logarithm with floor ``floor``;
    ``dither`` adds Gaussian noise of that deviation to the samples in training only. ``normalize``: ``utterance``
    takes one mean and deviation of an item (Squeezeformer), ``bin`` one per mel bin, ``none`` neither; both count the
    item's real frames only. ``spec_augment``: keywords of SpecAugment, or None. The scale of the samples matters only
    through the floor and the dither.
    """

    def __init__(
        self,
        mels: int = 80,
        rate: int = 16000,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 0.0,
        high_hz: float | None = None,
        pre_emphasis: float = 0.97,
        floor: float = 1e-8,
        dither: float = 0.0,
        normalize: Literal["utterance", "bin", "none"] = "utterance",
        spec_augment: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.dim, self.rate = mels, rate
        self.window, self.hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
        self.fft = 2 ** math.ceil(math.log2(self.window))
        self.pre_emphasis, self.floor, self.dither, self.normalize = pre_emphasis, floor, dither, normalize
        self.register_buffer("taper", torch.hann_window(self.window), persistent=False)
        self.register_buffer(
            "filters", mel_filters(mels, self.fft, rate, low_hz, high_hz or rate / 2), persistent=False
        )
        self.spec_augment = SpecAugment(**spec_augment) if spec_augment else None

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x, frame_mask = zero_padding(inputs["x"].float(), mask), stride_mask(mask, self.hop)
        # The logarithm of a bfloat16 power has two digits: features are float32 whatever the loop's autocast says.
        with torch.autocast(x.device.type, enabled=False):
            x = self._normalized(self._log_mel(x, mask, frame_mask.shape[1]), frame_mask)
        if self.spec_augment is not None:
            x = self.spec_augment(x, frame_mask)
        return Features(x, frame_mask)

    def _log_mel(self, x: Tensor, mask: Tensor, frames: int) -> Tensor:
        if self.training and self.dither:
            x = zero_padding(x + self.dither * torch.randn_like(x), mask)
        x = torch.cat([x[:, :1], x[:, 1:] - self.pre_emphasis * x[:, :-1]], dim=1)
        x = zero_padding(x, mask)  # the sample after the end is not -0.97 times the last one
        left = self.window // 2
        right = max(0, (frames - 1) * self.hop + self.window - left - x.shape[1])
        windows_BTN = nn.functional.pad(x, (left, right)).unfold(1, self.window, self.hop)[:, :frames]
        power = torch.fft.rfft(windows_BTN * self.taper, n=self.fft).abs().square()
        return (power @ self.filters).clamp(min=self.floor).log()

    def _normalized(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.normalize != "none":
            axes = (1, 2) if self.normalize == "utterance" else (1,)
            count = lengths_of(mask).clamp(min=1)[:, None, None] * (self.dim if self.normalize == "utterance" else 1)
            centred = x - zero_padding(x, mask).sum(dim=axes, keepdim=True) / count
            deviation = (zero_padding(centred, mask).square().sum(dim=axes, keepdim=True) / count).sqrt()
            x = centred / (deviation + 1e-5)
        return zero_padding(x, mask)
