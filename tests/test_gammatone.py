"""Gammatone features equal the filter's definition, its closed forms, scipy's bank and a convolution in float64."""

import math

import numpy as np
import pytest
import torch
from scipy import signal

from seqformer.errors import InputError
from seqformer.frontends.gammatone import TAIL, Gammatone, bandwidth, centres, gammatones
from seqformer.nn.mask import mask_of

torch.set_num_threads(1)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((0.05 * rng.normal(size=samples) + 0.2 * np.sin(np.arange(samples) * 0.3)).astype("f4"))


def features(frontend: Gammatone, x: torch.Tensor) -> torch.Tensor:
    return frontend.eval()({"x": x[None]}, torch.ones(1, len(x), dtype=torch.bool)).x[0]


def test_bands_are_spaced_by_their_bandwidth():
    """Glasberg and Moore: 24.7 (4.37 f / kHz + 1) Hz, 132.6 Hz at 1 kHz; and 21.4 lg(4.37 f / kHz + 1) in number."""
    assert float(bandwidth(torch.tensor(1000.0))) == pytest.approx(132.639)
    f = centres(40, 100.0, 7500.0)
    assert float(f[0]) == pytest.approx(100) and float(f[-1]) == pytest.approx(7500)
    number = 21.4 * torch.log10(4.37e-3 * f + 1)
    torch.testing.assert_close(number.diff(), (number[1] - number[0]).expand(39))
    # One more band, to where Slaney's list ends, is his: f_i = -c + (high + c) exp(i ln((low + c) / (high + c)) / n)
    c, n = 1000 / 4.37, 39
    slaney = -c + (7500 + c) * np.exp(np.arange(1, n + 1) * math.log((100 + c) / (7500 + c)) / n)
    np.testing.assert_allclose(f[:-1].flip(0).numpy(), slaney, rtol=1e-12)


@pytest.mark.parametrize("hertz", [100.0, 440.0, 1000.0, 3000.0])
def test_a_response_is_the_definition_and_scipys(hertz):
    rate, f = 16000, torch.tensor([hertz], dtype=torch.float64)
    found = gammatones(f, rate)[0].numpy()
    t, b = np.arange(len(found)) / rate, 1.019 * float(bandwidth(f))
    shape = t**3 * np.exp(-2 * np.pi * b * t) * np.cos(2 * np.pi * hertz * t)
    peak = np.abs(shape).argmax()
    np.testing.assert_allclose(found, shape * found[peak] / shape[peak], atol=1e-12)
    envelope = t**3 * np.exp(-2 * np.pi * b * t)
    assert envelope[-1] == pytest.approx(TAIL * envelope.max(), rel=0.05)
    theirs, _ = signal.gammatone(hertz, "fir", order=4, numtaps=len(found), fs=rate)
    np.testing.assert_allclose(found, theirs, atol=2e-5 * np.abs(theirs).max())  # they round the constants


@pytest.mark.parametrize("hertz", [440.0, 1000.0, 3000.0])
def test_gain_and_width_are_the_closed_forms(hertz):
    """Gain 1 at the centre; -3 dB at b sqrt(2^(1/4) - 1) off it; the area of the power response is the bandwidth."""
    rate, f = 16000, torch.tensor([hertz], dtype=torch.float64)
    width = float(bandwidth(f))
    half = 1.019 * width * math.sqrt(2**0.25 - 1)
    h = gammatones(f, rate)[0].numpy()
    at = np.array([hertz, hertz - half, hertz + half])
    gain = np.abs(np.exp(-2j * np.pi * at[:, None] * np.arange(len(h)) / rate) @ h)
    np.testing.assert_allclose(gain, [1, math.sqrt(0.5), math.sqrt(0.5)], rtol=3e-3)  # the negative frequency adds
    power = np.abs(np.fft.rfft(h, 1 << 17)) ** 2
    assert power.sum() * rate / (1 << 17) == pytest.approx(width, rel=5e-3)
    slaney = signal.gammatone(hertz, "iir", fs=rate)
    near = np.linspace(hertz - 2 * half, hertz + 2 * half, 41)
    theirs = np.abs(signal.freqz(*slaney, worN=near, fs=rate)[1])
    ours = np.abs(np.exp(-2j * np.pi * near[:, None] * np.arange(len(h)) / rate) @ h)
    assert np.abs(ours - theirs).max() < 0.02  # Slaney's cascade, an approximation of the same filter


@pytest.mark.parametrize(("rate", "samples"), [(8000, 16013), (16000, 9000), (8000, 1)])
@pytest.mark.parametrize("compression", ["root", "log"])
def test_features_equal_a_convolution_in_float64(rate, samples, compression):
    frontend, x = Gammatone(rate=rate, normalize="none", compression=compression), noise(samples)
    found = features(frontend, x).numpy()
    window, hop = rate // 40, rate // 100
    y = x.double().numpy()
    y = np.concatenate([y[:1], y[1:] - 0.97 * y[:-1], np.zeros(window + hop)])
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    h = gammatones(centres(40, 100.0, 15 / 32 * rate), rate).numpy()
    z = np.abs(np.stack([signal.convolve(y, row)[: len(y)] for row in h]))
    z = np.concatenate([np.zeros((40, window // 2)), z], axis=1)
    frames = math.ceil(samples / hop)
    mean = np.stack([z[:, t * hop : t * hop + window] @ taper / taper.sum() for t in range(frames)])
    mean = np.maximum(mean, 1e-5)
    expected = np.log(mean) if compression == "log" else mean**0.1
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_silence_gives_the_floor_and_a_tone_its_band():
    frontend = Gammatone(rate=8000, normalize="none", compression="log")
    assert torch.equal(features(frontend, torch.zeros(800)), torch.full((10, 40), 1e-5).log())
    f = centres(40, 100.0, 3750.0)
    tone = torch.sin(2 * math.pi * f[25] / 8000 * torch.arange(8000)).float()
    steady = features(Gammatone(rate=8000, normalize="none", compression="log", pre_emphasis=0), tone)[20:80]
    assert (steady.argmax(dim=1) == 25).all()
    torch.testing.assert_close(steady[:, 25].exp(), torch.full((60,), 2 / math.pi), rtol=5e-3, atol=0)


@pytest.mark.parametrize("normalize", ["utterance", "bin"])
def test_statistics_are_of_real_frames(normalize):
    lengths = torch.tensor([8000, 2000])
    x = torch.stack([noise(8000, seed) for seed in range(2)])
    y, mask, *_ = Gammatone(rate=8000, normalize=normalize).eval()({"x": x}, mask_of(lengths, 8000))
    for item in range(2):
        real = y[item, mask[item]].double()
        axes = (0, 1) if normalize == "utterance" else (0,)
        assert len(real) == lengths[item] // 80 and not y[item, ~mask[item]].any()
        assert real.mean(dim=axes).abs().max() < 1e-4 and (real.std(dim=axes, unbiased=False) - 1).abs().max() < 2e-3


def test_a_band_beyond_half_the_rate_is_refused():
    with pytest.raises(InputError, match=r"bands from 100.0 to 4000 Hz; expected them between 0 and 4000.0"):
        Gammatone(rate=8000, high_hz=4000)
