"""Log-mel features equal Kaldi's and a plain DFT; SpecAugment masks what its closed form says and nothing else."""

import math

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from seqformer.frontends.audio import LogMel, SpecAugment, mel_filters
from seqformer.frontends.dense import Dense
from seqformer.nn.mask import mask_of

torch.set_num_threads(1)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise with a tone, about as loud as speech."""
    rng = np.random.default_rng(seed)
    wave = 0.05 * rng.normal(size=samples) + 0.2 * np.sin(np.arange(samples) * 0.3)
    return torch.from_numpy(wave.astype(np.float32))


def features(logmel: LogMel, x: torch.Tensor) -> torch.Tensor:
    found = logmel({"x": x[None]}, torch.ones(1, len(x), dtype=torch.bool))
    assert found.mask.all() and found.bias is None
    return found.x[0]


def kaldi(x: torch.Tensor, rate: int, mels: int, low: float, high: float) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.remove_dc_offset = False
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = mels
    options.mel_opts.low_freq, options.mel_opts.high_freq = low, high
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(rate, x.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)])


def plain_log_mel(x: np.ndarray, rate: int, mels: int, window: int, hop: int, fft: int, high: float) -> np.ndarray:
    """Float64, one frame, one frequency and one filter at a time, from the definition."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    x = np.concatenate([np.zeros(window), [x[0]], x[1:] - 0.97 * x[:-1], np.zeros(2 * window)])
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    edges = [mel(high) * edge / (mels + 1) for edge in range(mels + 2)]
    rows = []
    for frame in range(math.ceil((len(x) - 3 * window) / hop)):
        start = window + frame * hop - window // 2
        segment, energies = x[start : start + window] * taper, np.zeros(mels)
        for k in range(fft // 2 + 1):
            power = abs(np.sum(segment * np.exp(-2j * np.pi * k * np.arange(window) / fft))) ** 2
            place = mel(k * rate / fft)
            for i in range(mels):
                left, centre, right = edges[i : i + 3]
                weight = min((place - left) / (centre - left), (right - place) / (right - centre))
                energies[i] += max(weight, 0) * power
        rows.append(np.log(np.maximum(energies, 1e-8)))
    return np.array(rows)


@pytest.mark.parametrize(
    ("rate", "mels", "low", "high"),
    [(16000, 80, 0, 8000), (16000, 80, 20, 7600), (16000, 40, 0, 8000), (8000, 40, 0, 4000), (8000, 23, 60, 3700)],
)
def test_log_mel_energies_equal_kaldi(rate, mels, low, high):
    x = noise(rate)
    logmel = LogMel(mels=mels, rate=rate, low_hz=low, high_hz=high, normalize="none").eval()
    # Kaldi's Hann window is the symmetric one; its frames begin where ours do once half a window of zeros is put first.
    logmel.taper.copy_(torch.hann_window(logmel.window, periodic=False))
    found = features(logmel, x)
    expected = kaldi(torch.cat([torch.zeros(logmel.window // 2), x]), rate, mels, low, high)
    interior = (len(x) - logmel.window // 2) // logmel.hop  # later frames see the end, which Kaldi cuts
    assert interior >= 97 and len(expected) >= interior
    gap = np.abs(found[:interior].numpy() - expected[:interior])
    filled = logmel.filters.sum(dim=0).numpy() > 0  # a filter narrower than the distance of two bins may be empty
    assert filled.mean() > 0.95 and gap[:, filled].max() <= 1e-3 and gap[:, filled].mean() <= 1e-5


@pytest.mark.parametrize(("rate", "mels", "window_ms", "hop_ms", "window", "hop", "fft"), [
    (16000, 40, 25.0, 10.0, 400, 160, 512),
    (8000, 23, 25.0, 10.0, 200, 80, 256),
    (8000, 20, 32.0, 16.0, 256, 128, 256),
    (11025, 20, 20.0, 12.5, 220, 138, 256),
])  # fmt: skip
def test_log_mel_energies_equal_a_plain_dft(rate, mels, window_ms, hop_ms, window, hop, fft):
    logmel = LogMel(mels=mels, rate=rate, window_ms=window_ms, hop_ms=hop_ms, normalize="none").eval()
    assert (logmel.window, logmel.hop, logmel.fft) == (window, hop, fft)
    x = noise(6 * hop + 3)
    expected = plain_log_mel(x.double().numpy(), rate, mels, window, hop, fft, rate / 2)
    found = features(logmel, x).numpy()
    assert found.dtype == np.float32 and found.shape == expected.shape == (7, mels)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_mel_filters_rise_and_fall_between_neighbouring_centres():
    filters = mel_filters(80, 512, 16000, 0.0, 8000.0)
    assert filters.shape == (257, 80) and filters.min() == 0 and filters.max() <= 1
    assert (filters.argmax(dim=0).diff() >= 0).all()
    # Between the first and the last centre two neighbouring triangles add up to 1.
    inner = slice(int(filters[:, 0].argmax()) + 1, int(filters[:, -1].argmax()))
    torch.testing.assert_close(filters[inner].sum(dim=1), torch.ones(inner.stop - inner.start))


def test_silence_gives_the_floor():
    logmel = LogMel(mels=8, rate=8000, normalize="none").eval()
    assert torch.equal(features(logmel, torch.zeros(800)), torch.full((10, 8), 1e-8).log())
    assert not features(LogMel(mels=8, rate=8000).eval(), torch.zeros(800)).any()


def test_normalization_counts_real_frames():
    lengths = torch.tensor([8000, 2000, 5000])
    x = torch.stack([noise(8000, seed) for seed in range(3)])
    for normalize, axes in (("utterance", (0, 1)), ("bin", (0,))):
        y, mask, *_ = LogMel(mels=20, rate=8000, normalize=normalize).eval()({"x": x}, mask_of(lengths, 8000))
        for item in range(3):
            real = y[item, mask[item]].double()
            assert len(real) == math.ceil(lengths[item] / 80)
            assert real.mean(dim=axes).abs().max() < 1e-5
            assert (real.std(dim=axes, unbiased=False) - 1).abs().max() < 3e-4  # the deviation has 1e-5 added
            assert not y[item, ~mask[item]].any()


def test_utterance_normalization_makes_the_loudness_irrelevant():
    logmel, x = LogMel(mels=20, rate=8000, floor=1e-20).eval(), noise(4000)
    torch.testing.assert_close(features(logmel, 0.01 * x), features(logmel, x), rtol=0, atol=1e-3)


def test_dither_is_drawn_in_training_only():
    x, mask = noise(1600)[None], mask_of(torch.tensor([1200]), 1600)
    plain, dithered = LogMel(mels=8, rate=8000), LogMel(mels=8, rate=8000, dither=0.01)
    assert torch.equal(dithered.eval()({"x": x}, mask).x, plain.eval()({"x": x}, mask).x)
    torch.manual_seed(0)
    first, second = (dithered.train()({"x": x}, mask).x for _ in range(2))
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(dithered({"x": x}, mask).x, first)
    assert torch.equal(plain.train()({"x": x}, mask).x, plain.eval()({"x": x}, mask).x)


def test_features_are_float32_whatever_the_autocast():
    logmel, x = LogMel(mels=8, rate=8000).eval(), noise(1600)
    expected = features(logmel, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = features(logmel, x)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert features(logmel, x.double()).dtype == torch.float32


def test_dense_normalizes_each_channel_over_its_own_values():
    x = 5 + 3 * torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    x[0, 3:9, 1], x[1, 0, 2] = math.nan, math.nan
    mask, missing = mask_of(torch.tensor([30, 12]), 30), x.isnan()
    y = Dense(4, normalize="item")({"x": x}, mask).x
    for item, length in enumerate((30, 12)):
        for channel in range(4):
            kept = ~missing[item, :length, channel]
            values = y[item, :length, channel][kept]
            assert values.mean().abs() < 1e-5 and (values.std(unbiased=False) - 1).abs() < 1e-4
            assert not y[item, :length, channel][~kept].any() and not y[item, length:].any()
    plain = Dense(4)({"x": x.double()}, mask).x
    assert plain.dtype == torch.float32 and torch.equal(plain[0], x[0].nan_to_num(0)) and not plain[1, 12:].any()


def covered_share(size: int, widths: int, masks: int) -> float:
    """Expected share of ``size`` places under any of ``masks`` spans, each of a width uniform in 0 ... widths-1."""
    once = np.zeros(size)
    for width in range(widths):
        starts = size - width + 1
        for start in range(starts):
            once[start : start + width] += 1 / (widths * starts)
    return float(np.mean(1 - (1 - once) ** masks))


@pytest.mark.parametrize(("masks", "share"), [(1, 0.2), (3, 0.2), (5, 0.05), (10, 0.05)])
def test_spec_augment_masks_as_many_frames_as_its_closed_form_says(masks, share):
    torch.manual_seed(0)
    size, items = 100, 4000
    augment = SpecAugment(freq_masks=0, freq_width=1, time_masks=masks, time_share=share)
    hidden = augment(torch.ones(items, size, 3), torch.ones(items, size, dtype=torch.bool)) == 0
    assert torch.equal(hidden.any(dim=2), hidden.all(dim=2))
    found = hidden[..., 0].double().mean(dim=1)
    error = float(found.std()) / items**0.5
    assert abs(float(found.mean()) - covered_share(size, round(size * share), masks)) < 4 * error


@pytest.mark.parametrize(("masks", "width"), [(1, 27), (2, 27), (2, 8)])
def test_spec_augment_masks_as_many_bins_as_its_closed_form_says(masks, width):
    torch.manual_seed(0)
    bins, items = 80, 4000
    augment = SpecAugment(freq_masks=masks, freq_width=width, time_masks=0, time_share=0.0)
    hidden = augment(torch.ones(items, 3, bins), torch.ones(items, 3, dtype=torch.bool)) == 0
    assert torch.equal(hidden.any(dim=1), hidden.all(dim=1))
    found = hidden[:, 0].double().mean(dim=1)
    error = float(found.std()) / items**0.5
    assert abs(float(found.mean()) - covered_share(bins, width, masks)) < 4 * error


def test_spec_augment_stays_inside_each_item_and_its_limits():
    torch.manual_seed(0)
    lengths = torch.arange(1, 201)
    augment = SpecAugment(freq_masks=0, freq_width=1, time_masks=2, time_share=0.3)
    seen_last = seen_first = False
    for _ in range(20):
        hidden = (augment(torch.ones(200, 200, 1), mask_of(lengths, 200)) == 0)[..., 0]
        spans = hidden.int().diff(dim=1, prepend=torch.zeros(200, 1)).eq(1).sum(dim=1)
        assert not (hidden & ~mask_of(lengths, 200)).any()  # never beyond the item's own length
        assert spans.max() == 2 and (hidden.sum(dim=1) <= 2 * (0.3 * lengths).floor()).all()
        seen_first |= bool(hidden[:, 0].any())
        seen_last |= bool(hidden[torch.arange(200), lengths - 1].any())
    assert seen_first and seen_last
    wide = SpecAugment(freq_masks=1, freq_width=50, time_masks=0, time_share=0.0)
    assert (wide(torch.ones(200, 3, 8), torch.ones(200, 3, dtype=torch.bool)) == 0).all(dim=2).any()


def test_spec_augment_is_the_identity_outside_training():
    augment = SpecAugment(freq_masks=2, freq_width=27, time_masks=5, time_share=0.5).eval()
    x = torch.randn(2, 50, 80)
    assert augment(x, torch.ones(2, 50, dtype=torch.bool)) is x
    keywords = dict(freq_masks=2, freq_width=3, time_masks=2, time_share=0.5)
    logmel, wave = LogMel(mels=8, rate=8000, spec_augment=keywords), noise(1600)
    assert torch.equal(features(logmel.eval(), wave), features(LogMel(mels=8, rate=8000), wave))
    torch.manual_seed(0)
    assert (features(logmel.train(), wave) == 0).any()
