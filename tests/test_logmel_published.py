"""Log-mel features equal those of published models: NeMo, Hugging Face Parakeet, and inside the ends Squeezeformer."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from seqformer.errors import InputError
from seqformer.frontends.audio import LogMel, mel_filters
from seqformer.nn.mask import lengths_of, mask_of
from seqformer.published.features import logmel_of_nemo, logmel_of_parakeet
from seqformer.registry import check

torch.set_num_threads(1)

TOLERANCE = 1e-3
SPEECH = Path(__file__).parents[2] / "shared" / "data" / "librispeech_mini" / "flac_sample"
LENGTHS = [48_000, 31_999, 16_001, 8_000, 815, 250]  # samples; the last gives one frame
# The preprocessor section of a published FastConformer's model_config.yaml.
NEMO = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": 16000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01, "window": "hann",
    "features": 80, "n_fft": 512, "log": True, "frame_splicing": 1, "dither": 1e-5, "pad_to": 0, "pad_value": 0.0,
}  # fmt: skip
PARAKEET = {
    "feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": 80, "hop_length": 160, "n_fft": 512,
    "padding_side": "right", "padding_value": 0.0, "preemphasis": 0.97, "processor_class": "ParakeetProcessor",
    "return_attention_mask": True, "sampling_rate": 16000, "win_length": 400,
}  # fmt: skip


def speech_like(samples: int, seed: int) -> np.ndarray:
    """Noise with a falling spectrum in bursts, a faint stretch and, if long enough, digital silence."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.normal(size=samples)) / (1 + np.arange(samples // 2 + 1) * 16000 / samples / 300)
    wave = np.fft.irfft(spectrum, samples) * (0.6 + 0.4 * np.sin(np.arange(samples) / 900))
    wave[samples // 4 : samples // 3] *= 1e-4
    wave[samples // 2 : samples // 2 + samples // 10] = 0
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def real_speech() -> list[np.ndarray]:
    return [soundfile.read(path, dtype="float32")[0] for path in sorted(SPEECH.rglob("*.flac"))[:3]]


def waves_of(kind: str) -> list[np.ndarray]:
    if kind == "noise":
        return [speech_like(length, seed) for seed, length in enumerate(LENGTHS)]
    if not SPEECH.is_dir():
        pytest.skip("the shared LibriSpeech sample is not here")
    return real_speech()


def padded(waves: list[np.ndarray], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, N), mask (B, N), with what may follow an item."""
    lengths = torch.tensor([len(wave) for wave in waves])
    x = torch.full((len(waves), int(lengths.max()) + 777), fill)
    for row, wave in enumerate(waves):
        x[row, : len(wave)] = torch.from_numpy(wave)
    return x, mask_of(lengths, x.shape[1])


def slaney_filters(mels: int, fft: int, rate: int, low: float, high: float, norm: str | None) -> np.ndarray:
    """(mels, fft // 2 + 1) from the published formulas, one triangle and one frequency at a time."""

    def mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) / (math.log(6.4) / 27)

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp(math.log(6.4) / 27 * (mel - 15))

    corners = [hertz(mel(low) + (mel(high) - mel(low)) * i / (mels + 1)) for i in range(mels + 2)]
    filters = np.zeros((mels, fft // 2 + 1))
    for i, (left, centre, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        for k in range(fft // 2 + 1):
            frequency = k * rate / fft
            height = min((frequency - left) / (centre - left), (right - frequency) / (right - centre))
            filters[i, k] = max(height, 0) * (2 / (right - left) if norm == "slaney" else 1)
    return filters


def nemo_features(waves: list[np.ndarray], settings: dict) -> list[np.ndarray]:
    """What FilterbankFeatures does in eval mode, in float64, one item at a time; frames beyond its length are cut."""
    rate, fft, mels = settings["sample_rate"], settings["n_fft"], settings["features"]
    window, hop = int(settings["window_size"] * rate), int(settings["window_stride"] * rate)
    high, emphasis = settings.get("highfreq") or rate / 2, settings.get("preemph", 0.97) or 0.0
    filters = slaney_filters(mels, fft, rate, settings.get("lowfreq", 0), high, settings.get("mel_norm", "slaney"))
    found, guard = [], settings.get("log_zero_guard_value", 2**-24)
    for wave in waves:
        x = torch.from_numpy(wave).double()
        x = torch.cat([x[:1], x[1:] - emphasis * x[:-1]])
        taper = torch.hann_window(window, periodic=False, dtype=torch.float64)
        spectrum = torch.stft(x, fft, hop, window, taper, pad_mode="constant", return_complex=True)
        y = filters @ spectrum.abs().square().numpy()[:, : len(wave) // hop]
        y = np.log(y + guard) if settings.get("log_zero_guard_type", "add") == "add" else np.log(np.maximum(y, guard))
        if settings["normalize"] in ("per_feature", "all_features"):
            axis = 1 if settings["normalize"] == "per_feature" else None
            deviation = y.std(axis=axis, ddof=1, keepdims=True) if y.shape[1] > 1 or axis is None else 0.0
            y = (y - y.mean(axis=axis, keepdims=True)) / (deviation + 1e-5)
        found.append(y.T)
    return found


def largest_gap(logmel: LogMel, waves: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Over all real frames of one padded batch; lengths must be equal, whatever follows an item."""
    worst = 0.0
    for fill in (0.0, 0.7):
        found = logmel.eval()({"x": (batch := padded(waves, fill))[0]}, batch[1])
        assert lengths_of(found.mask).tolist() == [len(y) for y in expected] and not found.x[~found.mask].any()
        for row, y in enumerate(expected):
            worst = max(worst, float(np.abs(found.x[row, : len(y)].double().numpy() - y).max()))
    return worst


@pytest.mark.parametrize("kind", ["noise", "speech"])
@pytest.mark.parametrize("changes", [
    {},
    {"features": 128, "normalize": "all_features"},
    {"normalize": "NA", "log_zero_guard_type": "clamp", "log_zero_guard_value": 1e-6},
    {"n_fft": 1024, "window_size": 0.032, "window_stride": 0.008, "preemph": None},
    {"features": 64, "lowfreq": 60, "highfreq": 7600, "mel_norm": None, "window_size": 0.02},
], ids=lambda changes: "-".join(map(str, changes.values())) or "published")  # fmt: skip
def test_features_equal_nemo(kind, changes):
    settings, waves = NEMO | changes, waves_of(kind)
    worst = largest_gap(LogMel(**logmel_of_nemo(settings)), waves, nemo_features(waves, settings))
    print(f"nemo_gap {worst:.2e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("kind", ["noise", "speech"])
@pytest.mark.parametrize("changes", [{}, {"feature_size": 128}, {"preemphasis": None, "n_fft": 400}],
                         ids=["80", "128", "plain"])  # fmt: skip
def test_features_equal_transformers(kind, changes):
    pytest.importorskip("librosa")
    extractor = pytest.importorskip("transformers").ParakeetFeatureExtractor(**PARAKEET | changes)
    waves = [wave for wave in waves_of(kind) if len(wave) >= 320]  # its deviation of a single frame is NaN
    theirs = extractor(waves, sampling_rate=16000, return_tensors="pt")
    lengths = theirs.attention_mask.sum(dim=1).tolist()
    expected = [y[:length].double().numpy() for y, length in zip(theirs.input_features, lengths, strict=True)]
    worst = largest_gap(LogMel(**logmel_of_parakeet(PARAKEET | changes)), waves, expected)
    print(f"parakeet_gap {worst:.2e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("kind", ["noise", "speech"])
def test_features_equal_the_official_squeezeformer_but_for_its_reflected_ends(kind):
    """10 log10 of energies over samples of peak 1, 80 dB below the loudest bin at most, up to scale and offset."""
    wave = waves_of(kind)[0]
    logmel = LogMel(normalize="none", top_db=80.0, floor=1e-20).eval()
    x = torch.from_numpy(wave).double() / np.abs(wave).max()
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    taper = torch.hann_window(400, dtype=torch.float64)
    power = torch.stft(x, 512, 160, 400, taper, pad_mode="reflect", return_complex=True).abs().square()
    decibels = 10 * (power.T @ logmel.filters.double()).clamp(min=1e-10).log10()
    decibels = decibels.clamp(min=float(decibels.max()) - 80)
    # Quieter samples: their peak must not matter.
    found = logmel({"x": 0.02 * torch.from_numpy(wave)[None]}, torch.ones(1, len(wave), dtype=torch.bool)).x[0].double()
    assert (found.max() - found.min()) * 10 / math.log(10) == pytest.approx(80, abs=1e-4)
    inside = slice(2, len(wave) // 160 - 1)  # frames that see no end: 200 samples to each side
    gap = (found - found.max())[inside] - ((decibels - decibels.max()) * math.log(10) / 10)[inside]
    ours, theirs = ((y - y.mean()) / y.std(correction=0) for y in (found, decibels))
    apart = (ours - theirs[: len(ours)]).abs()
    print(
        f"squeezeformer_gap {gap.abs().max():.2e}; normalized {apart[inside].max():.2e}, at the ends {apart.max():.2e}"
    )
    assert gap.abs().max() <= TOLERANCE


def test_slaney_filters_equal_the_formula_and_have_area_one():
    for mels, fft, low, high, norm in [(80, 512, 0, 8000, "slaney"), (64, 1024, 60, 7600, "none")]:
        found = mel_filters(mels, fft, 16000, low, high, "slaney", norm)
        np.testing.assert_allclose(found.T, slaney_filters(mels, fft, 16000, low, high, norm), atol=1e-6)
    for scale in ("htk", "slaney"):
        area = mel_filters(20, 8192, 16000, 0.0, 8000.0, scale, "slaney").sum(dim=0) * 16000 / 8192
        # A triangle that is straight in mel bulges a little in hertz.
        torch.testing.assert_close(area, torch.ones(20), atol=5e-2 if scale == "htk" else 2e-3, rtol=0)


@pytest.mark.parametrize("samples", [1, 79, 80, 81, 159, 160, 161, 799, 800, 801])
def test_frames_may_be_whole_hops_only(samples):
    logmel = LogMel(mels=8, rate=8000, frames="floor", correction=1).eval()
    y, mask, *_ = logmel({"x": torch.ones(2, samples)}, mask_of(torch.tensor([samples, 1]), samples))
    assert lengths_of(mask).tolist() == [samples // 80, 0] and y.shape[1] == max(1, samples // 80)
    assert y.isfinite().all() and not y[~mask].any()


def test_top_db_is_taken_from_an_items_own_real_frames():
    waves = [speech_like(8000, 0), 1e-3 * speech_like(4000, 1)]
    logmel = LogMel(normalize="none", floor=1e-20, top_db=20.0).eval()
    y, mask, *_ = logmel({"x": (batch := padded(waves, 1.0))[0]}, batch[1])
    for row in range(2):
        assert y[row, mask[row]].max() - y[row, mask[row]].min() == pytest.approx(2 * math.log(10), abs=1e-5)


def test_published_settings_become_known_keywords():
    for keywords in (logmel_of_nemo({}), logmel_of_nemo(NEMO), logmel_of_parakeet({}), logmel_of_parakeet(PARAKEET)):
        check("frontend", "logmel", keywords)
    assert {**logmel_of_nemo(NEMO), "dither": 0.0} == {**logmel_of_parakeet(PARAKEET), "dither": 0.0, "low_hz": 0.0,
                                                       "high_hz": None}  # fmt: skip
    samples = {"window_size": None, "n_window_size": 400, "window_stride": None, "n_window_stride": 160}
    assert logmel_of_nemo(NEMO | samples) == logmel_of_nemo(NEMO)
    assert logmel_of_nemo({"sample_rate": 8000})["window_ms"] == 20.0  # NeMo's defaults, not ours
    assert logmel_of_nemo(NEMO | {"normalize": None})["normalize"] == "none"
    assert logmel_of_nemo({"log_zero_guard_value": "tiny"})["floor"] == torch.finfo(torch.float32).tiny
    assert logmel_of_nemo({"log_zero_guard_value": "eps"})["floor"] == torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("changes", "message"), [
    ({"log": False}, "log is False, which is not supported; it may be True"),
    ({"mag_power": 1.0}, "mag_power is 1.0, which is not supported; it may be 2.0"),
    ({"frame_splicing": 3}, "frame_splicing is 3, which is not supported; it may be 1"),
    ({"window": "hamming"}, "window is 'hamming', which is not supported; it may be 'hann'"),
    ({"pad_mode": "reflect"}, "pad_mode is 'reflect', which is not supported; it may be 'constant'"),
    ({"exact_pad": True}, "exact_pad is True"),
    ({"use_grads": True}, "use_grads is True"),
    ({"use_torchaudio": True}, "use_torchaudio is True"),
    ({"_target_": "nemo.collections.asr.modules.AudioToMFCCPreprocessor"}, "_target_ is .*it may be 'AudioToMelS"),
    ({"normalize": "per_bin"}, "normalize is 'per_bin', which is not supported; it may be 'per_feature', 'all_"),
    ({"normalize": {"fixed_mean": [0.0], "fixed_std": [1.0]}}, "normalize is .*not supported"),
    ({"mel_norm": 2}, "mel_norm is 2, which is not supported; it may be 'slaney', None"),
    ({"log_zero_guard_type": "max"}, "log_zero_guard_type is 'max'"),
    ({"log_zero_guard_value": "small"}, "log_zero_guard_value is 'small', .*it may be 'tiny', 'eps'"),
    ({"features": 80.5}, "features is 80.5; expected a whole number above 0"),
    ({"sample_rate": "${sample_rate}"}, r"sample_rate is '\${sample_rate}'; expected a number"),
    ({"n_window_size": 400}, "both window_size and n_window_size are given"),
    ({"sample_rate": 22050}, "window of 551 samples is not supported; it may be an even number"),
    ({"n_fft": 256}, "n_fft is 256 samples; expected at least the window's 400"),
    ({"high_freq": 7600}, "unknown setting high_freq: 7600; did you mean 'highfreq'?"),
])  # fmt: skip
def test_what_the_frontend_cannot_follow_is_refused(changes, message):
    with pytest.raises(InputError, match="nemo preprocessor: .*" + message):
        logmel_of_nemo(NEMO | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"feature_extractor_type": "WhisperFeatureExtractor"}, "feature_extractor_type is 'Whisper.*'Parakeet"),
    ({"hop_len": 160}, "unknown setting hop_len: 160; did you mean 'hop_length'?"),
    ({"win_length": 401}, "window of 401 samples is not supported"),
])  # fmt: skip
def test_what_parakeet_does_not_know_is_refused(changes, message):
    with pytest.raises(InputError, match="parakeet preprocessor: " + message):
        logmel_of_parakeet(PARAKEET | changes)


def test_a_transform_shorter_than_the_window_is_refused():
    with pytest.raises(InputError, match="fft is 256 samples; expected at least the window's 400"):
        LogMel(fft=256)
