"""Feature settings of published models, in the publishers' own names -> keywords of the ``logmel`` frontend.

Both publishers compute the same thing: librosa's filters (Slaney scale and area), a symmetric Hann window in a centred
Fourier transform with zeros at the ends, ln(x + 2^-24), the mean and sample deviation of each mel bin over
floor(samples / hop) frames. Sources: NeMo, FilterbankFeatures at commit 5b72777 (earlier releases reflected the
samples at both ends and counted one frame more: neither is a setting, so weights of any age get the newer arithmetic,
as they do in NeMo today); transformers, ParakeetFeatureExtractor.
"""

from collections.abc import Mapping
from typing import Any

from seqformer.errors import InputError, nearest
from seqformer.published.options import choose

SHARED = {"periodic": False, "mel_scale": "slaney", "frames": "floor", "correction": 1}
GUARD = 2.0**-24
# Settings with one meaning that the frontend knows; another value would be another feature.
NEMO_FIXED = {
    "_target_": "AudioToMelSpectrogramPreprocessor",
    "window": "hann",
    "log": True,
    "mag_power": 2.0,
    "frame_splicing": 1,
    "exact_pad": False,  # True centres the frames elsewhere
    "use_torchaudio": False,  # True reflects the samples at the ends, which makes an item depend on its padding
    "pad_mode": "constant",  # so would "reflect"
    "use_grads": False,  # True adds 1e-5 to every power
}
NEMO_MAPPED = {
    "sample_rate", "features", "window_size", "n_window_size", "window_stride", "n_window_stride", "n_fft", "lowfreq",
    "highfreq", "mel_norm", "preemph", "log_zero_guard_type", "log_zero_guard_value", "dither", "normalize",
}  # fmt: skip
NEMO_UNUSED = {
    "pad_to", "pad_value", "max_duration",  # what follows an item's end: our masks keep it out of every result
    "nb_augmentation_prob", "nb_max_freq", "rng",  # augmentation, in training only
    "stft_exact_pad", "stft_conv",  # deprecated: NeMo itself ignores them
}  # fmt: skip
NEMO_NORMALIZE = {"per_feature": "bin", "all_features": "utterance", "NA": "none", None: "none", False: "none"}
NEMO_GUARDS = {"tiny": 2.0**-126, "eps": 2.0**-23}  # of float32

PARAKEET_FIXED = {"feature_extractor_type": "ParakeetFeatureExtractor"}
PARAKEET_MAPPED = {"feature_size", "sampling_rate", "win_length", "hop_length", "n_fft", "preemphasis"}
PARAKEET_UNUSED = {
    "padding_side", "padding_value", "return_attention_mask",  # of a batch's padding, which changes no result here
    "processor_class",
}  # fmt: skip


def logmel_of_nemo(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Section ``preprocessor`` of a NeMo model_config.yaml -> keywords of LogMel; absent settings are NeMo's defaults.

    Raises InputError naming a setting that is unknown, or whose value the frontend cannot follow. Dither is noise in
    training only, in NeMo as here.
    """
    source = "nemo preprocessor"
    _check_known(settings, source, NEMO_FIXED, NEMO_MAPPED | NEMO_UNUSED)
    rate = _whole(settings, "sample_rate", 16000, source)
    window = _samples(settings, "size", 0.02, rate, source)
    hop = _samples(settings, "stride", 0.01, rate, source)
    fft = _whole(settings, "n_fft", None, source) if settings.get("n_fft") else None
    guard_value = settings.get("log_zero_guard_value", GUARD)
    return SHARED | {
        "mels": _whole(settings, "features", 64, source),
        "rate": rate,
        **_spectrum(window, hop, fft, rate, source),
        "low_hz": _number(settings, "lowfreq", 0.0, source),
        "high_hz": _number(settings, "highfreq", None, source) if settings.get("highfreq") else None,
        "mel_norm": choose(settings, "mel_norm", "slaney", {"slaney": "slaney", None: "none"}, source),
        "pre_emphasis": 0.0 if settings.get("preemph", 0.97) is None else _number(settings, "preemph", 0.97, source),
        "guard": choose(settings, "log_zero_guard_type", "add", {"add": "add", "clamp": "clamp"}, source),
        "floor": (
            choose(settings, "log_zero_guard_value", None, NEMO_GUARDS, source)
            if isinstance(guard_value, str)
            else _number(settings, "log_zero_guard_value", GUARD, source)
        ),
        "dither": _number(settings, "dither", 1e-5, source),
        "normalize": choose(settings, "normalize", "per_feature", NEMO_NORMALIZE, source),
    }


def logmel_of_parakeet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json of transformers' ParakeetFeatureExtractor -> keywords of LogMel.

    In a processor_config.json the same settings are the section ``feature_extractor``. Absent settings are the
    extractor's defaults. Raises InputError as logmel_of_nemo.
    """
    source = "parakeet preprocessor"
    _check_known(settings, source, PARAKEET_FIXED, PARAKEET_MAPPED | PARAKEET_UNUSED)
    rate = _whole(settings, "sampling_rate", 16000, source)
    window, hop = _whole(settings, "win_length", 400, source), _whole(settings, "hop_length", 160, source)
    emphasis = settings.get("preemphasis", 0.97)
    return SHARED | {
        "mels": _whole(settings, "feature_size", 80, source),
        "rate": rate,
        **_spectrum(window, hop, _whole(settings, "n_fft", 512, source), rate, source),
        "mel_norm": "slaney",
        "pre_emphasis": 0.0 if emphasis is None else _number(settings, "preemphasis", 0.97, source),
        "guard": "add",
        "floor": GUARD,
        "normalize": "bin",
    }


def _check_known(settings: Mapping[str, Any], source: str, fixed: Mapping[str, Any], others: set[str]) -> None:
    for key, value in settings.items():
        if key not in others and key not in fixed:
            raise InputError(f"{source}: unknown setting {key}: {value!r}; {nearest(key, others | set(fixed))}")
        if key in fixed and (value.split(".")[-1] if isinstance(value, str) else value) != fixed[key]:
            raise InputError(f"{source}: {key} is {value!r}, which is not supported; it may be {fixed[key]!r}")


def _spectrum(window: int, hop: int, fft: int | None, rate: int, source: str) -> dict[str, Any]:
    """Sizes in samples -> keywords; an odd window or transform is refused: torch.stft centres it a sample elsewhere."""
    for name, size in (("window", window), ("n_fft", fft or 2)):
        if size < 2 or size % 2:
            raise InputError(f"{source}: {name} of {size} samples is not supported; it may be an even number")
    if fft is not None and fft < window:
        raise InputError(f"{source}: n_fft is {fft} samples; expected at least the window's {window}")
    return {"window_ms": 1000 * window / rate, "hop_ms": 1000 * hop / rate, "fft": fft}


def _samples(settings: Mapping[str, Any], noun: str, default: float, rate: int, source: str) -> int:
    """NeMo's window size or stride, which it takes in seconds, cut to whole samples, or in samples."""
    seconds, samples = f"window_{noun}", f"n_window_{noun}"
    if not settings.get(samples):
        return int(_number(settings, seconds, default, source) * rate)
    if settings.get(seconds):
        raise InputError(f"{source}: both {seconds} and {samples} are given; expected one of them")
    return _whole(settings, samples, None, source)


def _number(settings: Mapping[str, Any], key: str, default: float | None, source: str) -> float:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{source}: {key} is {value!r}; expected a number")
    return float(value)


def _whole(settings: Mapping[str, Any], key: str, default: int | None, source: str) -> int:
    value = _number(settings, key, default, source)
    if not value.is_integer() or value < 1:
        raise InputError(f"{source}: {key} is {settings.get(key)!r}; expected a whole number above 0")
    return int(value)
