"""A language model trained as any other run: from a text file or a manifest to perplexity and the texts of a beam."""

import json

import numpy as np
import polars
import pytest
import torch
from conftest import DENSE, TINY, change, poisoned

from seqformer.data.manifest import read_manifest
from seqformer.data.targets import Units
from seqformer.data.text import Characters, Words, fit_tokenizer
from seqformer.data.texts import TextDataset
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError
from seqformer.lm.neural import NeuralLM
from seqformer.model import create_model
from seqformer.predict import TrainedRun, load_fold
from seqformer.speech.language_models import open_model
from seqformer.train.crossval import train_run

torch.set_num_threads(1)
CAUSAL = {"name": "conformer", "dim": 8, "depth": 1, "heads": 1, "kernel": 3, "stem": "linear", "dropout": 0.1}
CAUSAL |= {"context": [-1, 0], "causal": True, "conv_norm": "layer", "positions": "rotary"}
OF_TEXTS = {
    "run": "texts",
    "seed": 3,
    "data": {"manifest": "", "batch_frames": 100},
    "folds": {"kind": "kfold", "n": 2, "use": "all"},
    "text": {"kind": "chars", "alphabet": "abc "},
    "dataset": {"name": "texts"},
    "frontend": {"name": "tokens", "vocab": [5], "width": 8},
    "backbone": CAUSAL,
    "head": {"name": "next_unit"},
    "optim": {"lr": 1e-2},
    "train": {"epochs": 6, "device": "cpu", "threads": 1},
    "metric": {"name": "perplexity"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two folds over 40 lines of text; not to be changed."""
    root, rng = tmp_path_factory.mktemp("neural"), np.random.default_rng(0)
    lines = [" ".join("".join(rng.choice(list("abc"), n)) for n in rng.integers(1, 4, rng.integers(1, 5)))
             for _ in range(40)]  # fmt: skip
    (root / "lines.txt").write_text("\n".join([*lines[:20], "", *lines[20:]]) + "\n")
    train_run(change(OF_TEXTS, data__manifest=str(root / "lines.txt")), root, quiet=True)
    return root / "texts"


def neural(tokenizer, **changes) -> NeuralLM:
    """A model that was not trained, its weights moved off their start."""
    torch.manual_seed(0)
    front = {"name": "tokens", "vocab": [tokenizer.size], "width": 8}
    model = create_model(front, CAUSAL, {"name": "next_unit", "vocab": tokenizer.size})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return NeuralLM(model, "next_unit", Units(tokenizer), **changes)


def test_the_score_of_a_run_is_the_perplexity_of_what_its_folds_were_not_trained_on(folder):
    run, facts = TrainedRun(folder), json.loads((folder / "metrics.json").read_text())
    oof, folds = polars.read_parquet(folder / "oof.parquet"), polars.read_parquet(folder / "folds.parquet")
    logs, count = 0.0, 0
    for name in run.names:
        rows = folds.filter(fold=int(name[-1]))["id"].to_list()
        model = open_model(folder, rows)
        texts = dict(oof.select("id", "truth").iter_rows())
        logs, count = (
            logs + sum(model.text_log_probs([texts[row] for row in rows])),
            count + sum(len(texts[row]) + 1 for row in rows),
        )
    assert oof.height == 40 and oof["id"].to_list()[0].startswith("lines.txt:")
    assert facts["out_of_fold"] == pytest.approx(np.exp(-logs / count), rel=1e-5)
    assert facts["out_of_fold"] < 5  # what a guess among five units has
    with pytest.raises(InputError, match="every fold was trained on some of the rows, such as lines"):
        open_model(folder, folds["id"].to_list())


@pytest.mark.parametrize("tokenizer", [Characters("abc "), Words(["a", "b", "ab"])], ids=["chars", "words"])
def test_whole_texts_have_the_log_probability_of_their_tokens_one_by_one(tokenizer):
    """So no frame sees a later one, and no text another one of its batch."""
    texts = ["a b ab", "", "ab", "b b b b b a ab a", "a"]
    for model in (neural(tokenizer), neural(tokenizer, tokens_at_once=7)):
        for text, whole in zip(texts, model.text_log_probs(texts), strict=True):
            state, total = model.start(), 0.0
            for token in text.split() if model.units == "words" else text.replace(" ", "▁"):
                log_p, state = model.score(state, token)
                total += log_p
            assert whole == pytest.approx(total + model.finish(state), abs=1e-5)
        everything = [
            float(model.score((), token)[0]) for token in ("abc▁" if model.units == "chars" else ["a", "b", "ab"])
        ]
        assert np.logaddexp.reduce([*everything, model.finish(())]) == pytest.approx(0, abs=1e-5)


def test_a_beam_takes_it_as_it_takes_an_n_gram_model():
    tokenizer = Characters("abc ")
    model, rng = neural(tokenizer), np.random.default_rng(0)
    log_probs = torch.from_numpy(rng.standard_normal((4, 3, 5))).log_softmax(-1).numpy()
    wide = {"beam": 200, "top": None, "least": -np.inf}
    fused = BeamDecoder(model, 0.7, 0.4, **wide).hypotheses(log_probs, tokenizer)
    found = BeamDecoder(rescorer=model, rescore_weight=0.7, **wide).hypotheses(log_probs, tokenizer)
    for one, other in zip(fused, found, strict=True):
        expected = {tuple(two.units): two.score + 0.4 * len(tokenizer.decode(two.units)) for two in other}
        # Spaces at the ends of a text, and of many in a row all but one, do not count in a search; here they are text.
        same = [text for text in expected if " ".join(tokenizer.decode(text).split()) == tokenizer.decode(text)]
        scores = {tuple(two.units): two.score for two in one}
        assert {text: scores[text] for text in same} == pytest.approx({text: expected[text] for text in same}, abs=1e-5)


def test_pieces_are_for_whole_texts_alone():
    pytest.importorskip("sentencepiece", reason="extra 'asr' is not installed")
    tokenizer = fit_tokenizer("bpe", ["the cat sat on the mat", "why not now"], 25, None)
    model = neural(tokenizer)
    assert all(log_p < 0 for log_p in model.text_log_probs(["the cat", "zz"]))
    with pytest.raises(InputError, match="take it as --rescore"):
        BeamDecoder(model).guide(tokenizer)


def test_a_run_rescores_what_a_run_reads(program, folder, tmp_path):
    plain = change(TINY, data__manifest=str(poisoned(tmp_path, [])), **DENSE, augment=[], train__epochs=1)
    train_run(change(plain, folds__use="all", text__alphabet="abc "), tmp_path, quiet=True)
    run, path = TrainedRun(tmp_path / "tiny"), tmp_path / "tiny" / "lm.json"
    grid = ["--rescore-weights", "0.5,2", "--rescore-bonuses", "0,4", "--beam", 4]
    code, _, err = program("lm", "tune", run.folder, "--rescore", folder, *grid)
    assert code == 0, err
    found = json.loads(path.read_text())
    assert found["lm"] is None and found["rescore"].endswith("texts") and len(found["grid"]) == 5
    out, manifest = tmp_path / "out.parquet", run.config.data.manifest
    assert program("predict", run.folder, manifest, out, "--lm", path)[0] == 0
    weights = {name: found[name] for name in ("rescore_weight", "rescore_bonus")}
    decoder = BeamDecoder(beam=4, rescorer=open_model(folder), **weights)
    assert dict(polars.read_parquet(out).iter_rows()) == run.predict(read_manifest(manifest), decoder=decoder)
    code, out, _ = program("lm", "perplexity", folder, folder.parent / "lines.txt")
    assert code == 0 and out.startswith("perplexity ") and " words and ends of lines" in out


def test_a_model_that_saw_the_rows_is_refused_for_them(program, tmp_path):
    """An LM trained on the manifest of the acoustic run, but in other folds, has no fold for its rows."""
    manifest = str(poisoned(tmp_path, []))
    train_run(change(TINY, data__manifest=manifest, **DENSE, augment=[], train__epochs=1), tmp_path, quiet=True)
    same = change(OF_TEXTS, data__manifest=manifest, folds={"kind": "column", "by": "half", "use": 0}, train__epochs=1)
    for name, use in (("same", 0), ("full", "full")):
        train_run(change(same, run=name, folds__use=use), tmp_path, quiet=True)
        given = ["--rescore", tmp_path / name, "--rescore-weights", 1, "--rescore-bonuses", 0, "--beam", 2]
        code, _, err = program("lm", "tune", tmp_path / "tiny", *given)
        assert (code, "every fold was trained on some of the rows" in err) == ((0, False) if use == 0 else (2, True)), (
            err
        )
    code, _, err = program("score", tmp_path / "tiny", manifest, "--where", "half=0", "--rescore", tmp_path / "full")
    assert code == 2 and "every fold was trained on some of the rows" in err
    assert program("score", tmp_path / "tiny", manifest, "--seen", "--rescore", tmp_path / "full")[0] == 0


def test_what_is_refused(program, folder, tmp_path):
    plain = change(OF_TEXTS, data__manifest=str(folder.parent / "lines.txt"))
    with pytest.raises(InputError, match="knows no augmentation"):
        train_run(change(plain, augment=[{"name": "noise"}]), tmp_path, quiet=True)
    with pytest.raises(InputError, match="needs one target of text"):
        TextDataset(read_manifest(folder.parent / "lines.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="there is no text in it"):
        read_manifest(tmp_path / "empty.txt")
    run = TrainedRun(folder)
    model, targets = load_fold(folder / "fold0", run.config, run.device)
    model.heads["next_unit"] = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="that takes next_unit"):
        NeuralLM(model, "next_unit", targets.encoders["text"])
