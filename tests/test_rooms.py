"""Rooms and recordings to augment with: what closed forms of acoustics say, exact ratios, and nothing moved in time."""

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seqformer import Example, InputError
from seqformer.augment.compose import Augment
from seqformer.augment.recordings import Recordings
from seqformer.augment.room import HEIGHT, MIXED, SOUND, images, room_response

RATE = 16_000
SPEECH = (np.random.default_rng(0).standard_normal(RATE) * np.linspace(0.01, 0.2, RATE)).astype(np.float32)


def change(parts: list[dict], x: np.ndarray = SPEECH, seed: int = 0) -> np.ndarray:
    return Augment([{"p": 1.0} | part for part in parts], RATE)(Example("a", {"x": x}, len(x)), seed).inputs["x"]


def some_room(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = np.array([*rng.uniform(3, 10, 2), rng.uniform(*HEIGHT)])
    return size, *rng.uniform(0.5, size - 0.5, (2, 3))


def recordings(folder: Path, **sounds: np.ndarray) -> Path:
    folder.mkdir()
    for name, samples in sounds.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return folder


def test_direct_sound_and_first_reflections_are_where_geometry_says():
    """Delay r / c and pressure 1 / r of the source, and of its six mirror images, damped by one wall each."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        size, source, microphone = some_room(rng)
        delays, gains = images(size, source, microphone, 0.5, 60.0)
        surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
        absorbed = 1 - math.exp(-24 * math.log(10) * size.prod() / (SOUND * surface * 0.5))  # Eyring
        for axis, far in itertools.product(range(3), (0, 1)):
            mirrored = source.copy()
            mirrored[axis] = 2 * far * size[axis] - source[axis]
            r = math.dist(mirrored, microphone)
            place = np.abs(delays - r / SOUND).argmin()
            assert abs(delays[place] - r / SOUND) < 1e-12
            assert gains[place] == pytest.approx(math.sqrt(1 - absorbed) / r, rel=1e-9)
        response, r = room_response(size, source, microphone, 0.5, RATE, rng), math.dist(source, microphone)
        first = np.flatnonzero(response)[0]
        assert first == round(r / SOUND * RATE) and response[first] == pytest.approx(1 / r, rel=1e-6)


def test_images_are_those_of_repeated_reflection():
    """Brute force: mirror every image at all six walls, again and again, and count the walls."""
    size, source, microphone = np.array([3.0, 4.0, 2.5]), np.array([1.0, 1.3, 0.9]), np.array([2.1, 2.2, 1.7])
    known, new = {tuple(source): 0}, {tuple(source)}
    for order in range(1, 13):
        mirrored = {
            tuple(round(2 * far * size[axis] - value, 9) if i == axis else value for i, value in enumerate(place))
            for place in new for axis in range(3) for far in (0, 1)
        }  # fmt: skip
        new = {place for place in mirrored if place not in known}
        known |= dict.fromkeys(new, order)
    near = {place: walls for place, walls in known.items() if math.dist(place, microphone) <= 14}
    delays, gains = images(size, source, microphone, 0.3, 14.0)
    damping = 12 * math.log(10) * 30 / (SOUND * 59 * 0.3)
    wanted = sorted((math.dist(place, microphone), walls) for place, walls in near.items())
    order = np.argsort(delays)
    assert len(delays) == len(wanted) > 300 and max(walls for _, walls in wanted) < 12
    np.testing.assert_allclose(delays[order] * SOUND, [r for r, _ in wanted], atol=1e-6)
    np.testing.assert_allclose(np.sort(gains), sorted(math.exp(-damping * walls) / r for r, walls in wanted), rtol=1e-6)


def test_sound_dies_away_in_the_asked_time():
    """RT60 by Schroeder's backward integral, -5 to -35 dB: within 15 % in each of 40 rooms, within 2 % on average.

    Where images end and noise begins no level jumps: on average, energy is within 1.5 dB of that of a diffuse field.
    """
    rng, ratios, jumps = np.random.default_rng(1), [], []
    for _ in range(40):
        size, source, microphone = some_room(rng)
        rt60 = rng.uniform(0.2, 0.8)
        response = room_response(size, source, microphone, rt60, RATE, rng).astype(np.float64)
        left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
        span = np.flatnonzero((left <= -5) & (left >= -35))
        ratios.append(-60 / np.polyfit(span / RATE, left[span], 1)[0] / rt60)
        edge = MIXED * math.sqrt(size.prod())
        parts = [(0.5 * edge, edge), (edge, 2 * edge)]
        fall = 6 * math.log(10) / rt60  # of the energy
        wanted = [
            4 * math.pi * SOUND / size.prod() / fall * (math.exp(-fall * a) - math.exp(-fall * b)) for a, b in parts
        ]
        found = [np.sum(response[int(a * RATE) : int(b * RATE)] ** 2) for a, b in parts]
        jumps.append(10 * np.log10(np.divide(found, wanted)))
    print(f"RT60 / asked {min(ratios):.3f} to {max(ratios):.3f}; dB before and after the edge {np.mean(jumps, axis=0)}")
    assert min(ratios) > 0.85 and max(ratios) < 1.15 and abs(np.mean(ratios) - 1) < 0.02
    assert (np.abs(np.mean(jumps, axis=0)) < 1.5).all()


@pytest.mark.parametrize("frames", [1, 100, RATE])
def test_reverberation_moves_neither_time_nor_length_nor_loudness(frames):
    click = np.zeros(frames, np.float32)
    click[frames // 3] = 0.01
    for seed in range(10):
        found = change([{"name": "reverb"}], click, seed)
        assert len(found) == frames and found.dtype == np.float32 and np.isfinite(found).all()
        assert np.abs(found[: frames // 3]).max(initial=0) < 1e-6  # nothing before its cause, but for rounding
        assert abs(found[frames // 3]) > 1e-5
        assert np.sum(found**2) == pytest.approx(np.sum(click**2), rel=1e-4)
    assert not change([{"name": "reverb"}], np.zeros(frames, np.float32)).any()


def test_recorded_rooms(tmp_path):
    """One response with its direct sound at sample 50 and an echo: x comes out as x + echo, in place."""
    response = np.zeros(400)
    response[50], response[50 + 160] = 0.8, 0.4
    folder = recordings(tmp_path / "rooms", hall=response)
    found = change([{"name": "reverb", "folder": str(folder)}])
    wanted = SPEECH + 0.5 * np.concatenate([np.zeros(160), SPEECH[:-160]])
    wanted *= math.sqrt(np.mean(SPEECH**2) / np.mean(wanted**2))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_recorded_noise_has_the_stated_ratio_and_is_cut_resampled_or_repeated(tmp_path):
    rng = np.random.default_rng(2)
    folder = recordings(tmp_path / "noise", short=0.1 * rng.standard_normal(3_000), long=rng.standard_normal(90_000))
    part = {"name": "noise", "folder": str(folder), "low_snr_db": 5.0, "high_snr_db": 5.0}
    long, short = (soundfile.read(folder / f"{name}.wav", dtype="float32")[0] for name in ("long", "short"))
    kinds = set()
    for seed in range(8):
        x = 0.1 * SPEECH
        added = change([part], x, seed) - x
        assert 10 * math.log10(np.mean(x**2) / np.mean(added**2)) == pytest.approx(5, abs=1e-3)
        source = short if np.allclose(added[3_000:6_000], added[:3_000], atol=1e-6) else long
        kinds.add(len(source))
        # Where it begins, by correlation; then every sample of it.
        start = int(
            np.fft.irfft(np.fft.rfft(source) * np.conj(np.fft.rfft(added[: len(source)], len(source)))).argmax()
        )
        wanted = source[(start + np.arange(RATE)) % len(source)]
        np.testing.assert_allclose(added / np.linalg.norm(added), wanted / np.linalg.norm(wanted), atol=1e-4)
    assert kinds == {3_000, 90_000}
    slow = Recordings(str(folder), 8_000)
    assert len(slow.stretch(1_001, rng)) == 1_001 and len(slow.whole(0)) == 45_000


def test_pink_noise_falls_by_three_decibels_an_octave():
    x = np.full(2**15, 1e-4, np.float32)
    power = np.mean([np.abs(np.fft.rfft(change([{"name": "noise", "color": "pink"}], x, s) - x)) ** 2
                     for s in range(40)], axis=0)  # fmt: skip
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(4, 14)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx(-3.01, abs=0.8)
    assert np.polyfit(range(10), 10 * np.log10(octaves), 1)[0] == pytest.approx(-3.01, abs=0.15)


def test_nothing_is_driven_into_clipping():
    """The item as a whole is turned down: its samples keep their ratios, and its noise the stated level."""
    loud = SPEECH * np.float32(0.9 / np.abs(SPEECH).max())
    for part in (
        {"name": "gain", "low_db": 12.0, "high_db": 12.0},
        {"name": "noise", "low_snr_db": -5.0, "high_snr_db": -5.0},
    ):
        found = change([part], loud)
        assert np.abs(found).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(change([{"name": "gain", "low_db": 12.0, "high_db": 12.0}], loud) * 0.9, loud, atol=1e-6)
    share = found @ loud / (loud @ loud)  # the noise is nearly at right angles to the item
    assert 10 * math.log10(np.sum((share * loud) ** 2) / np.sum((found - share * loud) ** 2)) == pytest.approx(
        -5, abs=0.2
    )
    beyond = np.array([3.0, -2.0], np.float32)  # had left the range before
    np.testing.assert_allclose(change([{"name": "gain", "low_db": 6.0, "high_db": 6.0}], beyond), beyond)
    assert np.isnan(change([{"name": "gain"}], np.array([np.nan, 0.5], np.float32))[0])


def test_a_seed_decides_all_in_another_process_too(tmp_path):
    folder = recordings(tmp_path / "noise", a=SPEECH, b=-SPEECH[::-1], c=SPEECH[:999])
    parts = [{"name": "reverb", "p": 0.7}, {"name": "noise", "folder": str(folder), "p": 0.7}]
    parts = [{"name": "one_of", "transforms": parts}, *parts]  # the rate reaches parts of parts
    augment = Augment(parts, RATE)
    sent, drawn = pickle.loads(pickle.dumps(augment)), set()
    for seed in range(20):
        example = Example("a", {"x": SPEECH[:3_000]}, 3_000)
        found = augment(example, seed).inputs["x"]
        np.testing.assert_array_equal(sent(example, seed).inputs["x"], found)
        drawn.add(found.tobytes())
    assert len(drawn) >= 15


def test_useless_folders_and_settings_are_one_line(tmp_path):
    folder = recordings(tmp_path / "noise", hum=SPEECH)
    (folder / "broken.wav").write_bytes(b"no audio" * 20)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.txt").write_text("nothing here")
    cases = [
        ({"name": "noise", "folder": str(tmp_path / "nois")}, RATE, "nois; did you mean 'noise'?"),
        (
            {"name": "noise", "folder": str(tmp_path / "empty")},
            RATE,
            "empty has no recordings: no file ends with .flac",
        ),
        ({"name": "reverb", "folder": str(folder)}, RATE, "broken.wav: "),
        ({"name": "noise", "folder": str(folder)}, None, "the rate of the rows, not known here; give rate"),
        ({"name": "reverb"}, None, "reverb needs the rate of the rows"),
        ({"name": "noise", "color": "brown"}, RATE, "found 'brown'"),
        ({"name": "noise", "low_snr_db": 50.0}, RATE, "from 50.0 to 40.0"),
        ({"name": "reverb", "low_rt60": 0.0}, RATE, "from 0.0 to 0.8"),
        ({"name": "reverb", "low_metres": 1.0}, RATE, "from 1.0 to 10.0"),
    ]
    for part, rate, message in cases:
        with pytest.raises(InputError) as caught:
            Augment([part], rate)
        assert message in str(caught.value) and "\n" not in str(caught.value)
