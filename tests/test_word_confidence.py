"""Confidences of words: by hand, calibrated, and reported on rows that the fold which reads them was not trained on."""

import json

import numpy as np
import pytest
from conftest import DENSE, TINY, change, poisoned

from seqformer.data.text import Words
from seqformer.decode.confidence import Calibration, same_words, word_confidences
from seqformer.decode.prefix_beam import Hypothesis
from seqformer.errors import InputError
from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
from seqformer.speech import word_confidence
from seqformer.speech.word_confidence import calibration_error, fit, read_calibration, reliability
from seqformer.train.crossval import train_run


def test_a_word_is_as_sure_as_the_share_of_texts_that_have_it_in_its_place():
    tokenizer = Words(["a", "b", "c"])
    texts = {"a b c": 0.5, "a c": 0.2, "b b c": 0.2, "c a b c": 0.1}
    hypotheses = [Hypothesis(tokenizer.encode(text), 0.0, np.log(p) - 7) for text, p in texts.items()]
    found = word_confidences(hypotheses, tokenizer)
    assert [word for word, _ in found] == ["a", "b", "c"]
    assert [p for _, p in found] == pytest.approx([0.8, 0.8, 1.0])
    assert word_confidences(hypotheses[:1], tokenizer) == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    assert word_confidences([Hypothesis([], 0.0, 0.0)], tokenizer) == word_confidences([], tokenizer) == []
    assert same_words(["x", "a"], ["a"]).tolist() == [0, 1]


def test_a_calibration_finds_how_confidences_were_distorted_and_lowers_the_error():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.02, 0.98, 20_000)
    right = (rng.random(len(truth)) < truth).astype(float)
    said = Calibration(3.0, 1.0)(truth)  # too sure
    found = fit(said[:10_000], right[:10_000])
    assert found.slope == pytest.approx(1 / 3, abs=0.03) and found.intercept == pytest.approx(-1 / 3, abs=0.08)
    before, after = (calibration_error(some, right[10_000:]) for some in (said[10_000:], found(said[10_000:])))
    assert before > 0.15 and after < 0.02
    np.testing.assert_allclose(Calibration()(truth), truth)
    with pytest.raises(InputError, match="3 of 3 words are right"):
        fit(said[:3], np.ones(3))


def test_the_error_is_the_gap_of_each_tenth_by_its_words():
    confidence, right = np.array([0.05, 0.15, 0.16, 1.0, 0.95]), np.array([0.0, 1, 0, 1, 0])
    gaps = [0.05, abs(0.155 - 0.5) * 2, abs(0.975 - 0.5) * 2]
    assert calibration_error(confidence, right) == pytest.approx(sum(gaps) / 5)
    assert [one["words"] for one in reliability(confidence, right)] == [1, 2, 2]


def test_the_command_reports_held_out_words_and_writes_what_it_fitted(program, tmp_path, monkeypatch):
    plain = change(TINY, data__manifest=str(poisoned(tmp_path, [])), **DENSE, augment=[], train__epochs=1)
    train_run(change(plain, folds__use="all", text__alphabet="abc "), tmp_path, quiet=True)
    run, path = tmp_path / "tiny", tmp_path / "tiny" / "confidence.json"
    write_arpa(train_kneser_ney(["a", "b", "c"], 2), tmp_path / "lm.arpa")
    grid = ["--weights", 3, "--bonuses", 12, "--beam", 8]  # so that there are words, some of them right
    assert program("lm", "tune", run, tmp_path / "lm.arpa", *grid)[0] == 0
    seen = []
    fitted = word_confidence.fit
    monkeypatch.setattr(word_confidence, "fit", lambda *given: seen.append(len(given[0])) or fitted(*given))
    code, _, err = program("lm", "calibrate", run, "--lm", run / "lm.json")
    assert code == 0, err
    found = json.loads(path.read_text())
    assert seen[0] + seen[1] == seen[2] == found["words"] and 0 < found["right"] < 1
    assert sum(one["words"] for one in found["table"]) == found["words"] and 0 <= found["after"] <= 1
    assert read_calibration(path) == (found["slope"], found["intercept"])
    pytest.importorskip("matplotlib", reason="extra 'report' is not installed")
    assert path.with_suffix(".png").stat().st_size > 1000
    path.write_text("{}")
    with pytest.raises(InputError, match="no file of seqformer lm calibrate"):
        read_calibration(path)
