"""A long recording read by windows, its words with their times in subtitles, and one that comes by standard input."""

import io
import struct
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import seqformer
from seqformer.data.audio import audio_facts, read_audio, read_windows, resample, resampling
from seqformer.data.text import BPE, Characters, Pieces, Words
from seqformer.decode.align import Span, Word, word_times
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.pauses import cut_at_pauses
from seqformer.errors import InputError
from seqformer.model import create_model
from seqformer.pretrained import transcribe_files
from seqformer.speech.listen import listen, read_stream
from seqformer.speech.long_audio import read_long, windows
from seqformer.speech.subtitles import captions, srt, vtt

torch.set_num_threads(1)

RATE = 4000
LOGMEL = {"name": "logmel", "rate": RATE, "mels": 8, "normalize": "none"}
BODY = dict(dim=16, depth=2, heads=2, kernel=5, dropout=0.0)
CTC = {"name": "ctc"}
NEAR = {"name": "conformer", "context": [6, 6]} | BODY  # sees less than a second to either side
LISTENER = {"name": "conformer", "causal": True, "context": [6, 0]} | BODY


def make(body: dict, front: dict = LOGMEL, head: dict = CTC):
    torch.manual_seed(0)
    model = create_model(front, body, head | {"vocab": 9}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        next(iter(model.heads.values())).linear.bias[0] += 1.0  # blanks too
    model.tokenizer = Characters("abcdefg ")
    return model


@torch.no_grad()
def talkative(model) -> None:
    """Make a transducer say several units, and blanks."""
    head, draws = model.heads["transducer"], torch.Generator().manual_seed(1)
    for part in (head.frames, head.units, head.linear, head.predictor.embedding):
        part.weight.normal_(generator=draws)
    head.linear.weight.mul_(2)
    head.linear.bias.zero_()[0] = 3.0


def recording(path, seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0):
    """Noise of a loudness that changes, so that the units do."""
    rng, samples = np.random.default_rng(seed), round(seconds * rate)
    loud = 0.3 * np.abs(np.sin(np.arange(samples) * 9.0 / rate) * np.sin(np.arange(samples) * 2.3 / rate))
    x = np.repeat((loud * rng.normal(size=samples)).clip(-1, 1)[:, None], channels, axis=1)
    soundfile.write(path, x, rate, subtype="PCM_16")
    return path


@torch.no_grad()
def unsplit(model, path) -> torch.Tensor:
    x = torch.from_numpy(read_audio(path, RATE)[0])[None]
    return next(iter(model({"x": x}, torch.ones_like(x, dtype=torch.bool)).values()))[0]


@pytest.mark.parametrize(("window", "overlap"), [(4.0, 2.0), (5.0, 2.03), (4.4, 3.0), (60.0, 2.0)])
@pytest.mark.parametrize("rate", [RATE, 11025])
def test_windows_give_the_unsplit_text(tmp_path, window, overlap, rate):
    model, path = make(NEAR), recording(tmp_path / "long.wav", 13.7, rate)
    expected = unsplit(model, path)
    parts = list(windows(model, "ctc", path, window, overlap))
    assert (len(parts) == 1) == (window > 13.7) and (len(parts) > 3) == (window < 6)
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=2e-5)
    whole = model.heads["ctc"].reader()
    whole.push(expected)
    found, frame_s = read_long([model], path, window, overlap)
    assert [span[:3] for span in found] == [span[:3] for span in whole.found]
    assert len(found) > 10 and frame_s == 0.04


def test_seams_of_too_short_an_overlap_show(tmp_path):
    """That the equality above can fail."""
    model, path = make(NEAR), recording(tmp_path / "long.wav", 13.7)
    found, expected = torch.cat(list(windows(model, "ctc", path, 4.0, 0.2))), unsplit(model, path)
    assert found.shape == expected.shape and (found - expected).abs().max() > 1e-2


def test_a_beam_search_reads_windows_in_pieces_that_pauses_part(tmp_path, monkeypatch):
    """Without a language model, a pause of certain blanks parts a search into two that give what one gives."""
    model, path = make(NEAR), recording(tmp_path / "long.wav", 13.7)
    expected = (20 * unsplit(model, path)).log_softmax(dim=-1).numpy()  # sharp, so that a narrow beam does
    decoder = BeamDecoder(beam=8)
    for at in range(40, len(expected), 40):
        expected[at : at + 4] = np.log([0.9999, *[0.0001 / 8] * 8])
    texts = decoder.texts([expected], model.tokenizer)
    parts = [torch.from_numpy(part) for part in np.array_split(expected, 5)]
    monkeypatch.setattr("seqformer.speech.long_audio.windows", lambda *_: iter(parts))
    monkeypatch.setattr("seqformer.speech.long_audio.PIECE_S", 4.0)
    spans, _ = read_long([model], path, 5.0, 2.0, decoder)
    assert [model.tokenizer.decode([span.unit for span in spans])] == texts != [""]
    assert all(a.end <= b.start for a, b in pairwise(spans)) and spans[-1].end <= len(expected)
    for unit, start, end, posterior in spans:
        assert posterior == pytest.approx(np.exp(expected[start:end, unit]).mean(), rel=1e-5)


def test_pieces_are_cut_in_the_longest_pause_and_are_the_whole_together():
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet([1, 1, 1], size=1000))
    log_probs[[70, 71, 72, 85]] = log_probs[150:300] = np.log([0.98, 0.01, 0.01])
    log_probs[50:70] = log_probs[73:85] = log_probs[86:100] = np.log([0.01, 0.98, 0.01])
    for parts in (1, 7, 900):
        pieces = list(cut_at_pauses(np.array_split(log_probs, parts), 100))
        assert np.array_equal(np.concatenate(pieces), log_probs)
        assert all(0 < len(piece) <= 100 for piece in pieces) and len(pieces[0]) == 71
    said = np.log(np.tile([0.1, 0.9], (90, 1)))
    said[60] = np.log([0.4, 0.6])
    assert [len(piece) for piece in cut_at_pauses([said], 80)] == [60, 30]
    assert [len(piece) for piece in cut_at_pauses([said[:9]], 1)] == [1] * 9 and not list(cut_at_pauses([], 5))


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"), [(7.3, 4000, 1), (7.3, 11025, 2), (0.01, 4000, 1), (4.0, 8000, 1)]
)
def test_windows_of_a_file_are_slices_of_it(tmp_path, seconds, rate, channels):
    path = recording(tmp_path / "a.flac", seconds, rate, channels)
    up, down = resampling(rate, RATE)
    step, window = 6400 // up * up, 8000
    whole = read_audio(path)[0]
    for number, found in enumerate(read_windows(path, RATE, window, step)):
        start = number * step * down // up
        np.testing.assert_allclose(
            found, resample(whole[start : start + -(-window * down // up)], rate, RATE), atol=1e-6
        )
    assert number == max(0, -(-(audio_facts(path)["frames"] - window * down / up) // (step * down / up)))


def test_memory_is_of_a_window(tmp_path):
    path = recording(tmp_path / "a.wav", 100)
    tracemalloc.start()
    total = sum(len(samples) for samples in read_windows(path, RATE, 10 * RATE, 10 * RATE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 100 * RATE and peak < 6 * 4 * 10 * RATE


@pytest.mark.parametrize(("window", "overlap", "told"), [
    (4.0, 4.0, "overlap is 4 s of windows of 4 s; expected 0 or more, and less"),
    (4.0, -1.0, "overlap is -1 s of windows of 4 s; expected 0 or more, and less"),
    (float("nan"), 1.0, "overlap is 1 s of windows of nan s"), (0.0, 0.0, "overlap is 0 s of windows of 0 s"),
    (4.0, 3.99, r"windows begin every 0.01 s; expected at least 0.04 s"),
])  # fmt: skip
def test_windows_that_cannot_be_are_refused(tmp_path, window, overlap, told):
    with pytest.raises(InputError, match=told):
        read_long([make(NEAR)], recording(tmp_path / "a.wav", 1), window, overlap)


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
def test_a_transducer_reads_windows_as_the_whole(tmp_path, predictor):
    head = {"name": "transducer", "predictor": predictor, "predictor_dim": 8, "joint": 8, "max_symbols": 2}
    model, path = make(NEAR, head=head), recording(tmp_path / "long.wav", 13.7)
    talkative(model)
    text = transcribe_files(model, [str(path)])[str(path)]
    for window in (4.0, float("inf")):
        spans, frame_s = read_long([model], path, window, 2.0)
        assert model.tokenizer.decode([span.unit for span in spans]) == text and len(set(text)) > 2
        assert [span.end - span.start for span in spans] == [1] * len(spans)
        assert abs(13.7 - frame_s * spans[-1].end) < 0.1
        assert all(a.start <= b.start for a, b in pairwise(spans)) and all(0 < span.posterior <= 1 for span in spans)
    with pytest.raises(InputError, match="head transducer gives no probabilities of units in frames, as ctc does"):
        read_long([model], path, 4.0, 2.0, BeamDecoder())
    assert transcribe_files(model, [str(path)], BeamDecoder(beam=2)).keys() == {str(path)}


@pytest.mark.parametrize("tokenizer", [
    Characters("abc "), Words(["ab", "c", "ba"]), Pieces(["▁a", "b", "▁", "c", "▁ca"]),
    BPE.fit(["ab abc cab ba ab a b c"] * 3, 12),
], ids=lambda tokenizer: type(tokenizer).__name__)  # fmt: skip
def test_words_are_those_of_the_text(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(30):
        units = rng.integers(1, tokenizer.size, size=rng.integers(0, 12)).tolist()
        spans = [Span(unit, 3 * place + 1, 3 * place + 3, 0.5) for place, unit in enumerate(units)]
        words = word_times(spans, tokenizer.spellings(), 0.5)
        assert [word.text for word in words] == tokenizer.decode(units).split()
        assert all(a.end <= b.start for a, b in pairwise(words))


def test_subtitles_in_closed_form():
    times = [("so", 0.0, 0.2), ("<it>", 0.3, 0.9), ("&", 2.0, 2.25), ("ends", 3661.9996, 3662.5)]
    words = [Word(*one, 1.0) for one in times]
    first, second, third = "00:00:00{0}000 --> 00:00:00{0}900", "00:00:02{0}000 --> 00:00:02{0}250", None
    third = "01:01:02{0}000 --> 01:01:02{0}500"
    assert srt(words) == f"1\n{first}\nso <it>\n\n2\n{second}\n&\n\n3\n{third}\nends\n\n".format(",")
    shown = f"WEBVTT\n\n{first}\nso &lt;it&gt;\n\n{second}\n&amp;\n\n{third}\nends\n\n"
    assert vtt(words) == shown.format(".") and srt([]) == "" and vtt([]) == "WEBVTT\n\n"


def test_captions_are_short_enough_to_read():
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.uniform(0.05, 1.3, size=400))
    words = [Word("x" * rng.integers(1, 12), start, start + 0.05, 1.0) for start in starts]
    shown = captions(words)
    assert [word for some in shown for word in some] == words
    for some, following in pairwise(shown):
        assert some[-1].end - some[0].start <= 6 and sum(len(word.text) + 1 for word in some) <= 86
        assert all(b.start - a.end < 1 for a, b in pairwise(some))
        full = sum(len(word.text) + 1 for word in [*some, following[0]]) > 70
        assert full or following[0].end - some[0].start > 6 or following[0].start - some[-1].end >= 1
    assert max(len(line) for line in srt(words).splitlines()) <= 42


def header(size: int, rate: int = RATE, channels: int = 1, bits: int = 16, form: int = 1) -> bytes:
    facts = struct.pack("<HHIIHH", form, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + facts + b"LIST\3\0\0\0abc\0data" + struct.pack("<I", size)


def test_samples_of_standard_input():
    pcm = np.random.default_rng(0).integers(-32768, 32768, size=5000).astype("<i2")
    for channels in (1, 2):
        expected = (pcm / 32768).reshape(-1, channels).mean(axis=1)
        for size in (pcm.nbytes, 0, 0xFFFFFFFF):
            data = header(size, channels=channels) + pcm.tobytes()
            data += b"LIST\2\0\0\0ab" if size == pcm.nbytes else b""
            found = np.concatenate(list(read_stream(io.BytesIO(data), RATE)))
            np.testing.assert_allclose(found, expected, atol=1e-7)
    for count in (1, 2, 3, 5000):
        found = list(read_stream(io.BytesIO(pcm[:count].tobytes()), RATE))
        np.testing.assert_allclose(np.concatenate(found), pcm[:count] / 32768, atol=1e-7)


@pytest.mark.parametrize(("data", "told"), [
    (header(100, rate=8000), "standard input is WAV at 8000 Hz; the model reads 4000 Hz"),
    (header(100, bits=24), "WAV of 24 bits, format 1; expected 16-bit PCM"),
    (header(100, form=3), "WAV of 16 bits, format 3"),
    (header(100)[:30], "breaks off in its header"),
    (b"RIFF\0\0\0\0AVI LIST", "is no WAV file"),
    (b"", "standard input holds no audio"),
    (header(0), "standard input holds no audio"),
    (b"R", r"inside a sample, after 0.00 s \(1 bytes\)"),
    (header(16000) + bytes(8000), r"the audio breaks off after 1.00 s of 2.00 s"),
    (bytes(8001), r"the audio breaks off inside a sample, after 1.00 s \(8001 bytes\)"),
    (header(0, channels=2) + bytes(16002), r"inside a sample, after 1.00 s \(16002 bytes\)"),
])  # fmt: skip
def test_bad_standard_input_is_one_line(data, told):
    with pytest.raises(InputError, match=told):
        list(read_stream(io.BytesIO(data), RATE))


def test_what_was_heard_is_kept_when_the_audio_breaks_off(tmp_path):
    model, final, partial = make(LISTENER), [], []
    x, _ = read_audio(recording(tmp_path / "a.wav", 3))
    data = np.rint(32768 * x).astype("<i2").tobytes()

    class Pipe(io.BytesIO):
        def read1(self, size: int) -> bytes:
            return super().read1(min(size, 999))

    listen(model, Pipe(data), final.append, partial.append)
    stream = seqformer.Stream(model)
    stream.push(x)
    stream.finish()
    assert "".join(final).replace(" ", "") == stream.text.replace(" ", "") != "" and len(partial) > 5
    kept = []
    with pytest.raises(InputError, match=r"inside a sample, after 3.00 s"):
        listen(model, Pipe(data + b"\0"), kept.append, lambda line: None)
    assert kept == final


def test_a_pause_ends_a_line():
    model = make(LISTENER)
    for blanks, lines in ((24, ["ab"]), (27, ["a", "b"])):  # frames of 40 ms
        best, pieces, final = iter([1] + [0] * blanks + [2] + [0] * 99), iter([bytes(320)] * 60), []
        model.heads["ctc"].forward = lambda x, mask, best=best: torch.eye(9)[[next(best) for _ in x[0]]][None]
        source = SimpleNamespace(read=lambda size: b"", read1=lambda size, pieces=pieces: next(pieces, b""))
        listen(model, source, final.append, lambda line: None)
        assert final == lines
