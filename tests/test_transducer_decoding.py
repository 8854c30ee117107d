"""A transducer's texts by beam and language model: the order of all texts, items together, and the program."""

import itertools

import numpy as np
import polars
import pytest
import torch
from conftest import DENSE, TINY, change, poisoned
from test_prefix_beam import CORPUS, DECODERS, LETTERS, expected_gain
from test_transducer import DIM, VOCAB, bounded_log_p, head_of

from seqformer.data.manifest import read_manifest
from seqformer.decode import transducer
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
from seqformer.lm.ngram import read_arpa
from seqformer.predict import TrainedRun
from seqformer.speech.tune_lm import read_lm
from seqformer.train.crossval import train_run

torch.set_num_threads(1)


@torch.no_grad()
@pytest.mark.parametrize("changes", DECODERS[1:], ids=str)
def test_a_wide_beam_orders_all_texts_by_alignments_and_what_is_said_of_whole_texts(changes):
    assert LETTERS.size == VOCAB
    kind, order = changes.get("model", (None, None))
    model = train_kneser_ney(CORPUS, order, kind) if kind else None
    other = train_kneser_ney(CORPUS[::-2], 3, "chars")
    second = {"rescorer": other, "rescore_weight": 0.9, "rescore_bonus": 1.3}
    decoder = BeamDecoder(**(changes | {"model": model, "beam": 500} | second))
    head, x = head_of(1, max_symbols=2), torch.randn(2, DIM)
    texts = [list(text) for size in range(5) for text in itertools.product((1, 2, 3), repeat=size)]
    expected = {}
    for units in texts:
        text = LETTERS.decode(units)
        said = expected_gain(text, decoder) + 0.9 * sum(other.log_probs(text)) + 1.3 * len(text.split())
        expected[tuple(units)] = bounded_log_p(head, x, units) + said
    heard = [head(x[None], torch.ones(1, 2).bool())[0].numpy()]
    (found,) = decoder.hypotheses(heard, LETTERS, head.search_frames)
    assert {tuple(one.units): one.score for one in found} == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert tuple(found[0].units) == max(expected, key=expected.get)


@torch.no_grad()
def test_items_are_searched_together_as_alone_and_dropping_early_changes_no_best_text(monkeypatch):
    decoder, cases = BeamDecoder(train_kneser_ney(CORPUS, 2), 0.6, 1.0, beam=4), []
    for seed in range(4):
        head, rng = head_of(seed), np.random.default_rng(seed)
        x = [torch.from_numpy(rng.standard_normal((frames, DIM))).float() for frames in (12, 0, 5, 1)]
        heard = [head(one[None], torch.ones(1, len(one)).bool())[0].numpy() for one in x]
        together = decoder.hypotheses(heard, LETTERS, head.search_frames)
        for item, one in zip(heard, together, strict=True):
            (alone,) = decoder.hypotheses([item], LETTERS, head.search_frames)
            assert [two.units for two in alone] == [two.units for two in one]
            assert [two.score for two in alone] == pytest.approx([two.score for two in one], abs=1e-4)
        cases += [(heard, head, together)]
    monkeypatch.setattr(transducer, "BEHIND", np.inf)
    for heard, head, together in cases:
        whole = decoder.hypotheses(heard, LETTERS, head.search_frames)
        assert [one[0].units for one in whole] == [one[0].units for one in together]
    assert decoder.hypotheses([], LETTERS, head.search_frames) == []


def test_the_program_takes_a_beam_and_a_language_model_for_a_transducer(program, tmp_path):
    head = {"name": "transducer", "predictor": "stateless", "predictor_dim": 4, "joint": 6, "max_symbols": 1}
    plain = change(TINY, data__manifest=str(poisoned(tmp_path, [])), **DENSE, augment=[], train__epochs=1, head=head)
    train_run(change(plain, folds__use="all", text__alphabet="abc "), tmp_path, quiet=True)
    write_arpa(train_kneser_ney(["a b", "b c a", "c", "a b c"], 2), tmp_path / "lm.arpa")
    run, manifest = TrainedRun(tmp_path / "tiny"), tmp_path / "manifest.parquet"
    grid = ["--weights", "0.1,0.9", "--bonuses", "0,4", "--beam", 3, "--rows", 12]
    code, _, err = program("lm", "tune", run.folder, tmp_path / "lm.arpa", *grid)
    assert code == 0, err
    out = tmp_path / "out.parquet"
    given = ["--lm", run.folder / "lm.json", "--length-bonus", 3, "--where", "half=0"]
    assert program("predict", run.folder, manifest, out, *given)[0] == 0
    assert program("score", run.folder, manifest, *given, "--seen")[0] == 0
    table = read_manifest(manifest, {"half": 0})
    model, settings = read_lm(run.folder / "lm.json")
    decoder = BeamDecoder(model, **(settings | {"bonus": 3.0}))
    assert model.entries == read_arpa(tmp_path / "lm.arpa").entries
    assert dict(polars.read_parquet(out).iter_rows()) == run.predict(table, decoder=decoder)
    votes = run.votes(table, decoder=decoder)
    assert all(len(texts) == 2 for texts in votes.values())  # of each fold its own: there is no mean of transducers
