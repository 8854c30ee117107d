"""Log-mel features of raw audio, on the device of the model, in float32.

Axes: B batch, N samples, T frames, F mel bins. Frame t is centred on sample t * hop and T = ceil(N / hop) or, on
request, floor(N / hop); samples before the start and after an item's own end are zeros, alone or in a batch. There is
no reflection at the ends: it would make the last frames of an item depend on its padding.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqformer.errors import InputError
from seqformer.frontends.features import Features
from seqformer.nn.mask import lengths_of, mask_of, stride_mask, zero_padding
from seqformer.nn.paths import fast_on_cpu
from seqformer.nn.precision import no_autocast
from seqformer.nn.resample import played
from seqformer.registry import register

PIECE, BAND = 256, 16  # frames, and mel filters, at a time on a CPU


def mel_filters(
    mels: int,
    fft: int,
    rate: int,
    low: float,
    high: float,
    scale: Literal["htk", "slaney"] = "htk",
    norm: Literal["none", "slaney"] = "none",
) -> Tensor:
    """Triangular filters (fft // 2 + 1, mels) with corners equally spaced on a mel scale between two frequencies in Hz.

    ``htk``: mel = 1127 ln(1 + f / 700), triangles linear in mel, as Kaldi's and TensorFlow's; source: HTK book, section
    5.4. ``slaney``: 3 f / 200 up to 1 kHz and logarithmic above, triangles linear in Hz, as librosa's; source: Slaney
    1998, Auditory Toolbox. Norm ``slaney`` divides each triangle by half its width in Hz, so that its area is 1.
    """
    mel, hertz = (_htk_mel, _htk_hertz) if scale == "htk" else (_slaney_mel, _slaney_hertz)
    edges = torch.linspace(*mel(torch.tensor([low, high], dtype=torch.float64)).tolist(), mels + 2, dtype=torch.float64)
    bins = torch.arange(fft // 2 + 1, dtype=torch.float64) * rate / fft
    area = 2 / (hertz(edges)[2:] - hertz(edges)[:-2])
    bins, edges = (mel(bins)[:, None], edges) if scale == "htk" else (bins[:, None], hertz(edges))
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rise, fall).clamp(min=0)
    return (filters * area if norm == "slaney" else filters).float()


def _htk_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def _htk_hertz(mel: Tensor) -> Tensor:
    return 700.0 * torch.expm1(mel / 1127.0)


def _slaney_mel(hertz: Tensor) -> Tensor:
    """15 mel at 1 kHz; above, 27 mel for each factor of 6.4."""
    return torch.where(hertz < 1000, 0.015 * hertz, 15 + 27 * (hertz.clamp(min=1000) / 1000).log() / math.log(6.4))


def _slaney_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel / 0.015, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


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


class SteppedSpecAugment(nn.Module):
    """SpecAugment in three strengths, s = 0, 1, 2: x (B, T, F), mask (B, T) -> (B, T, F), masked with 0 in training.

    s is 1 after ``steps[0]`` updates and 2 after ``steps[1]``. Each item gets between s and max(frames // 100, 2) m
    time masks of 1 to ``time_width`` frames, m being 1, 2, 4, and between s and 1 + m of 1 to ``freq_width`` bins.
    Draws are as in SpecAugment; the trainer says in ``begin_step`` which update begins, so that no checkpoint holds it.
    Source: the configs of Zeineldeen et al. 2022.
    """

    def __init__(self, steps: tuple[int, int], time_width: int = 20, freq_width: int = 8):
        super().__init__()
        self.steps, self.time_width, self.freq_width = tuple(steps), time_width, freq_width
        self.strength = 0

    def begin_step(self, step: int) -> None:
        self.strength = sum(step >= first for first in self.steps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return x
        T, F = x.shape[1:]
        frames, least, factor = lengths_of(mask), self.strength, (1, 2, 4)[self.strength]
        bins, most = torch.full_like(frames, F), (frames // 100).clamp(min=2) * factor
        # Bins first: how many numbers time masks take depends on how far the batch is padded.
        hidden_BF = self._drawn(bins, torch.full_like(frames, 1 + factor), 1 + factor, least, self.freq_width, F)
        hidden_BT = self._drawn(frames, most, max(T // 100, 2) * factor, least, self.time_width, T)
        return x.masked_fill(hidden_BT[:, :, None] | hidden_BF[:, None, :], 0)

    @staticmethod
    def _drawn(sizes: Tensor, most: Tensor, rows: int, least: int, width: int, size: int) -> Tensor:
        """Spans drawn within ``sizes`` (B,), between ``least`` and ``most`` (B,) of them -> (B, size), True inside."""
        count = least + (torch.rand(len(sizes), device=sizes.device) * (most - least + 1)).floor()
        # One row of numbers after another: those of a span are the same however many rows follow.
        drawn_R2B = torch.rand(rows, 2, len(sizes), device=sizes.device)
        wide = torch.minimum((drawn_R2B[:, 0] * width).floor() + 1, sizes)
        start = (drawn_R2B[:, 1] * (sizes - wide + 1)).floor()
        wide = wide.masked_fill(torch.arange(rows, device=sizes.device)[:, None] >= count, 0)
        return _covered(start.T, wide.T, size)


def make_spec_augment(keywords: dict[str, Any] | None) -> nn.Module | None:
    """SpecAugment or, with ``steps``, SteppedSpecAugment; None without keywords."""
    if not keywords:
        return None
    return SteppedSpecAugment(**keywords) if "steps" in keywords else SpecAugment(**keywords)


def _covered(start: Tensor, width: Tensor, size: int) -> Tensor:
    """Spans (B, n) -> (B, size), True inside any of an item's n spans."""
    position = torch.arange(size, device=start.device)
    return ((position >= start[..., None]) & (position < (start + width)[..., None])).any(dim=1)


@register("frontend", "logmel")
class LogMel(nn.Module):
    """inputs["x"] (B, N) samples in [-1, 1] at ``rate`` Hz, mask (B, N) -> Features(x (B, T, mels), mask).

    Pre-emphasis, Hann window (``periodic``, or else symmetric) zero-padded to ``fft`` samples (by default the next
    power of two), power spectrum, mel filters (``mel_scale``, ``mel_norm``: see mel_filters), natural logarithm.
    ``guard`` keeps the logarithm finite: ``clamp`` takes ln(max(x, floor)), ``add`` ln(x + floor); ``top_db`` further
    lifts what lies more than so many decibels below the loudest bin of an item. ``frames``: T = ceil(N / hop), or
    floor(N / hop), at least 1. ``dither`` adds Gaussian noise of that deviation to the samples in training only.
    ``normalize``: ``utterance`` takes one mean and deviation of an item (Squeezeformer), ``bin`` one per mel bin,
    ``none`` neither; both count the item's real frames only, and the deviation divides by their count less
    ``correction`` (1: the sample deviation). ``spec_augment``: keywords of SpecAugment or SteppedSpecAugment, or None.
    A batch that says so is played faster or slower first, see ``seqformer.nn.resample``.
    The scale of the samples matters only through the floor and the dither. Raises InputError where ``fft`` is shorter
    than the window.

    The defaults are our own; ``seqformer.published.features`` gives the keywords of published models. The official
    Squeezeformer features are ``top_db=80, floor=1e-20`` but for their ends, which reflect the samples and may count
    one frame more; what else they do (samples divided by the largest, 10 log10 in place of ln) top_db and the
    normalization undo. On real speech 8e-4 apart inside, 0.6 in the first and last frames.
    """

    plays = True  # reads "x_speed"

    def __init__(
        self,
        mels: int = 80,
        rate: int = 16000,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        fft: int | None = None,
        periodic: bool = True,
        low_hz: float = 0.0,
        high_hz: float | None = None,
        mel_scale: Literal["htk", "slaney"] = "htk",
        mel_norm: Literal["none", "slaney"] = "none",
        pre_emphasis: float = 0.97,
        floor: float = 1e-8,
        guard: Literal["clamp", "add"] = "clamp",
        top_db: float | None = None,
        dither: float = 0.0,
        frames: Literal["ceil", "floor"] = "ceil",
        normalize: Literal["utterance", "bin", "none"] = "utterance",
        correction: int = 0,
        spec_augment: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.dim, self.rate = mels, rate
        self.window, self.hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
        left = self.window // 2
        self.reach = (left + 1, self.window - left - 1)  # samples that frame t sees before and after sample t * hop
        self.fft = fft or 2 ** math.ceil(math.log2(self.window))
        if self.fft < self.window:
            raise InputError(f"logmel: fft is {fft} samples; expected at least the window's {self.window}")
        self.pre_emphasis, self.floor, self.guard, self.top_db = pre_emphasis, floor, guard, top_db
        self.dither, self.frames, self.normalize, self.correction = dither, frames, normalize, correction
        self.register_buffer("taper", torch.hann_window(self.window, periodic=periodic), persistent=False)
        filters = mel_filters(mels, self.fft, rate, low_hz, high_hz or rate / 2, mel_scale, mel_norm)
        self.register_buffer("filters", filters, persistent=False)
        self.bands = _bands(filters)
        self.spec_augment = make_spec_augment(spec_augment)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x, frame_mask = played(inputs, mask), self._frame_mask(mask)
        # The logarithm of a bfloat16 power has two digits: features are float32 whatever the loop's autocast says.
        with no_autocast(x):
            x = self._log_mel(x, mask, frame_mask.shape[1])
            if self.top_db is not None:
                peak = x.masked_fill(~frame_mask[..., None], -torch.inf).amax(dim=(1, 2), keepdim=True)
                x = torch.maximum(x, peak - self.top_db * math.log(10) / 10)
            x = normalize_frames(x, frame_mask, self.normalize, self.correction)
        if self.spec_augment is not None:
            x = self.spec_augment(x, frame_mask)
        return Features(x, frame_mask)

    def _frame_mask(self, mask: Tensor) -> Tensor:
        if self.frames == "ceil":
            return stride_mask(mask, self.hop)
        # An item shorter than one hop has no frame; a batch of nothing else keeps one padded frame for the backbone.
        return mask_of(lengths_of(mask) // self.hop, max(1, mask.shape[1] // self.hop))

    def _log_mel(self, x: Tensor, mask: Tensor, frames: int) -> Tensor:
        if self.training and self.dither:
            x = zero_padding(x + self.dither * torch.randn_like(x), mask)
        if not fast_on_cpu(x):
            return self._log_energy(x, mask, frames)
        # An item at a time stays in the cache: three times as fast as the batch.
        items = zip(x.split(1), mask.split(1), strict=True)
        return torch.cat([self._log_energy(item, item_mask, frames) for item, item_mask in items])

    def _log_energy(self, x: Tensor, mask: Tensor, frames: int) -> Tensor:
        left = self.window // 2
        right = max(0, (frames - 1) * self.hop + self.fft - left - x.shape[1])
        # Of what follows the end nothing is kept: the sample there is not -0.97 times the last one.
        changes = zero_padding(torch.sub(x[:, 1:], x[:, :-1], alpha=self.pre_emphasis), mask[:, 1:])
        x = nn.functional.pad(torch.cat([x[:, :1], changes], dim=1), (left, right))
        # Windows of fft samples under a taper that is 0 beyond the window: the transform then has nothing to copy.
        windows_BTN = x.unfold(1, self.fft, self.hop)[:, :frames]
        taper = nn.functional.pad(self.taper, (0, self.fft - self.window))
        if fast_on_cpu(x):
            pieces = (_power(piece, taper) for piece in windows_BTN.split(PIECE, dim=1))
            energy = torch.cat([self._mel_energy(power) for power in pieces], dim=1)
        else:
            energy = _power(windows_BTN, taper) @ self.filters
        return (energy + self.floor if self.guard == "add" else energy.clamp(min=self.floor)).log()

    def _mel_energy(self, power: Tensor) -> Tensor:
        """power (B, T, bins) -> (B, T, F): a few filters at a time, which are zeros but for neighbouring bins."""
        found = []
        for first, (low, high) in zip(range(0, self.dim, BAND), self.bands, strict=True):
            found.append(power[..., low:high] @ self.filters[low:high, first : first + BAND])
        return torch.cat(found, dim=-1)


def _power(windows_BTN: Tensor, taper: Tensor) -> Tensor:
    """The power spectrum (B, T, N // 2 + 1) of windows under a taper (N,)."""
    wave = torch.fft.rfft(windows_BTN * taper)
    return torch.addcmul(wave.real.square(), wave.imag, wave.imag)


def _bands(filters: Tensor) -> list[tuple[int, int]]:
    """The bins [low, high) that each ``BAND`` of filters (bins, F) look at."""
    rows = [(part.abs().sum(dim=1) > 0).nonzero().flatten().tolist() for part in filters.split(BAND, dim=1)]
    return [(bins[0], bins[-1] + 1) if bins else (0, 1) for bins in rows]


def normalize_frames(x: Tensor, mask: Tensor, kind: Literal["utterance", "bin", "none"], correction: int = 0) -> Tensor:
    """x (B, T, F), mask (B, T) -> the same with padding 0, and mean 0 and deviation 1 over an item's real frames.

    ``utterance`` takes one mean and deviation of an item, ``bin`` one per column, ``none`` neither; the deviation
    divides by the count less ``correction``.
    """
    if kind != "none":
        axes = (1, 2) if kind == "utterance" else (1,)
        count = lengths_of(mask).clamp(min=1)[:, None, None] * (x.shape[2] if kind == "utterance" else 1)
        centred = x - zero_padding(x, mask).sum(dim=axes, keepdim=True) / count
        squares = zero_padding(centred, mask).square().sum(dim=axes, keepdim=True)
        # One frame leaves a sample deviation undefined; its squares are 0, and so is the deviation taken here.
        x = centred / ((squares / (count - correction).clamp(min=1)).sqrt() + 1e-5)
    return zero_padding(x, mask)
