"""From a text to a language model, and from there to what a run predicts: folds together, and nothing seen twice."""

import json
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from conftest import DENSE, TINY, change, poisoned

from seqformer.cli.decoder import make_decoder
from seqformer.data.manifest import read_manifest
from seqformer.data.text import Characters
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.errors import InputError
from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
from seqformer.lm.ngram import read_arpa
from seqformer.metrics import cer
from seqformer.predict import TrainedRun, load_fold, make_dataset
from seqformer.speech.tune_lm import read_lm
from seqformer.train.crossval import train_run
from seqformer.transcripts import frame_log_probs, read_texts

torch.set_num_threads(1)
FRONT = DENSE | {"augment": [], "train__epochs": 1, "folds__use": "all", "text__alphabet": "abc "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of two folds over features with a text each, and a language model beside it; not to be changed."""
    root = tmp_path_factory.mktemp("lm")
    train_run(change(TINY, data__manifest=str(poisoned(root, [])), **FRONT), root, quiet=True)
    (root / "text").write_text("a b\nb c a\n\nc\na b c\n")
    return root / "tiny"


@pytest.fixture
def arpa(folder, program) -> Path:
    out = folder.parent / "lm.arpa"
    assert program("lm", "train", folder.parent / "text", out, "--order", 2)[0] == 0
    return out


def test_train_and_perplexity(program, folder, arpa):
    text = folder.parent / "text"
    code, out, _ = program("lm", "perplexity", arpa, text)
    model = read_arpa(arpa)
    logs = [one for line in ["a b", "b c a", "c", "a b c"] for one in model.log_probs(line)]
    assert code == 0 and out.startswith(f"perplexity {np.exp(-np.mean(logs)):.2f} of 13 words; ")
    code, out, _ = program("lm", "train", text, folder.parent / "chars.arpa", "--units", "chars", "--order", 3)
    assert code == 0 and out.startswith("4 texts, 7 1-grams, ")
    assert read_arpa(folder.parent / "chars.arpa").units == "chars"


def frames_of(run: TrainedRun, name: str, table) -> dict[str, np.ndarray]:
    model, _ = load_fold(run.folder / name, run.config, run.device)
    dataset = make_dataset(run.config, table, None, None)
    return {key: value for ids, (found,) in frame_log_probs([model], dataset, run.config.data, "ctc")
            for key, value in zip(ids, found, strict=True)}  # fmt: skip


def test_folds_with_one_tokenizer_are_read_from_their_mean_others_apart(folder, arpa):
    run, decoder = TrainedRun(folder), BeamDecoder(read_arpa(arpa), weight=0.8, bonus=2.0, beam=4)
    table = read_manifest(run.config.data.manifest)[:9]
    one, two = (frames_of(run, name, table) for name in run.names)
    for row, votes in run.votes(table, decoder=decoder).items():
        mean = torch.from_numpy(one[row] + two[row]).div(2).log_softmax(-1).numpy()
        assert votes == decoder.texts([mean], Characters("abc "))
    assert run.predict(table, decoder=decoder) == {
        row: votes[0] for row, votes in run.votes(table, True, decoder).items()
    }
    models, tokenizers = [model for model, _ in run.folds()], [Characters("abc "), Characters("cab ")]
    found = read_texts(models, tokenizers, make_dataset(run.config, table, None, None), run.config.data, "ctc", decoder)
    for row, texts in found.items():
        pairs = zip((one, two), tokenizers, strict=True)
        assert texts == [decoder.texts([frames[row]], tokenizer)[0] for frames, tokenizer in pairs]


def test_weights_are_tuned_out_of_fold_and_predict_takes_them(program, folder, arpa, tmp_path):
    path, run = folder / "lm.json", TrainedRun(folder)
    code, out, err = program("lm", "tune", folder, arpa, "--weights", "0.1,0.9", "--bonuses", "0,6", "--beam", 4)
    assert code == 0, err
    found = json.loads(path.read_text())
    assert len(found["grid"]) == 4 and found["rows"] == 40 and found["score"] == min(g["score"] for g in found["grid"])
    table = read_manifest(run.config.data.manifest)
    folds, frames = polars.read_parquet(folder / "folds.parquet"), {}
    for name in run.names:
        frames |= frames_of(run, name, table.join(folds.filter(fold=int(name[-1])), on="id", how="semi"))
    truth = [text for row in frames for text in table.filter(id=row)["text"]]
    for tried in found["grid"]:
        decoder = BeamDecoder(read_arpa(arpa), tried["weight"], tried["bonus"], beam=4)
        assert tried["score"] == pytest.approx(cer(decoder.texts(list(frames.values()), Characters("abc ")), truth))
    assert len({tried["score"] for tried in found["grid"]}) > 2
    model, tuned = read_lm(path)
    assert tuned == {key: found[key] for key in ("weight", "bonus", "beam")}
    out = tmp_path / "out.parquet"
    assert program("predict", folder, run.config.data.manifest, out, "--lm", path, "--hot", "c, ab")[0] == 0
    wanted = run.predict(table, decoder=BeamDecoder(model, words=("c", "ab"), **tuned))
    assert dict(polars.read_parquet(out).iter_rows()) == wanted
    code, out, _ = program("score", folder, run.config.data.manifest, "--seen", "--beam", 3)
    value = cer(list(run.predict(table, decoder=BeamDecoder(beam=3)).values()), table["text"].to_list())
    assert code == 0 and out.startswith(f"cer {value:.4f} on 40 rows")


def test_both_passes_are_tuned_out_of_fold_and_predict_takes_them(program, folder, arpa, tmp_path):
    second, path, run = tmp_path / "second.arpa", tmp_path / "both.json", TrainedRun(folder)
    assert program("lm", "train", folder.parent / "text", second, "--units", "chars", "--order", 3)[0] == 0
    grid = ["--weights", "0.1,0.9", "--bonuses", "0", "--rescore-weights", "0,2", "--rescore-bonuses", "0,3"]
    code, _, err = program("lm", "tune", folder, arpa, "--rescore", second, *grid, "--beam", 4, "--out", path)
    assert code == 0, err
    found, table = json.loads(path.read_text()), read_manifest(run.config.data.manifest)
    assert len(found["grid"]) == 2 + 8 and len({tried["score"] for tried in found["grid"]}) > 3
    both = [tried for tried in found["grid"] if "rescore_weight" in tried]
    assert found["score"] == min(tried["score"] for tried in both) and found["fused"] == min(
        tried["score"] for tried in found["grid"] if "rescore_weight" not in tried
    )
    folds, frames = polars.read_parquet(folder / "folds.parquet"), {}
    for name in run.names:
        frames |= frames_of(run, name, table.join(folds.filter(fold=int(name[-1])), on="id", how="semi"))
    truth = [text for row in frames for text in table.filter(id=row)["text"]]
    for tried in both:
        weights = {key: value for key, value in tried.items() if key != "score"}
        decoder = BeamDecoder(read_arpa(arpa), beam=4, rescorer=read_arpa(second), **weights)
        assert tried["score"] == pytest.approx(cer(decoder.texts(list(frames.values()), Characters("abc ")), truth))
    out = tmp_path / "out.parquet"
    assert program("predict", folder, run.config.data.manifest, out, "--lm", path, "--rescore-bonus", -4)[0] == 0
    given = {name: found[name] for name in ("weight", "bonus", "beam", "rescore_weight")} | {"rescore_bonus": -4.0}
    wanted = run.predict(table, decoder=BeamDecoder(read_arpa(arpa), rescorer=read_arpa(second), **given))
    assert dict(polars.read_parquet(out).iter_rows()) == wanted


def test_a_model_of_a_folds_texts_is_refused_for_the_others(program, folder, tmp_path):
    run, places = TrainedRun(folder), [tmp_path / "0.arpa", tmp_path / "1.arpa"]
    for fold, place in enumerate(places):
        assert program("lm", "train", folder, place, "--fold", fold)[0] == 0
    table, folds = read_manifest(run.config.data.manifest), polars.read_parquet(folder / "folds.parquet")
    texts = table.join(folds.filter(fold=1), on="id", how="semi")["text"].to_list()
    assert read_arpa(places[0]).entries == read_arpa(_trained(texts, tmp_path)).entries
    code, _, err = program("lm", "tune", folder, places[0], "--out", tmp_path / "lm.json")
    assert code == 2 and f"{places[0]} was trained on rows that fold 1 of {folder} validates" in err


def _trained(texts: list[str], folder: Path) -> Path:
    write_arpa(train_kneser_ney(texts), folder / "own.arpa")
    return folder / "own.arpa"


def test_what_is_refused(program, folder, arpa, tmp_path):
    path = tmp_path / "lm.json"
    assert program("lm", "tune", folder, arpa, "--weights", 1, "--bonuses", 0, "--rows", 4, "--out", path)[0] == 0
    assert json.loads(path.read_text())["rows"] == 4
    changed = tmp_path / "changed.arpa"
    changed.write_text(arpa.read_text())
    damaged = "no file of seqformer lm tune"
    for key, value, wanted in [
        ("lm_sha256", "0", "changed after"),
        ("weight", "much", damaged),
        ("rescore", 1, damaged),
    ]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lm": str(changed), key: value}))
        with pytest.raises(InputError, match=wanted):
            read_lm(path)
    for given, wanted in [
        ((None, None, 0.5, None, None, 1.0), "of a language model: --lm"),
        ((None, 0, None, None, None, 1.0), "--beam 0: expected 1 or more"),
        ((arpa, None, -1.0, None, None, 1.0), "--lm-weight -1.0: expected 0 or more"),
        ((None, None, None, None, "a", -1.0), "--hot-bonus -1.0: expected 0 or more"),
        ((arpa, None, None, None, None, 1.0, None, 0.5), "of a second language model: --rescore"),
        ((None, None, None, None, None, 1.0, arpa, -0.5), "--rescore-weight -0.5: expected 0 or more"),
    ]:
        with pytest.raises(InputError, match=wanted):
            make_decoder(*given)
    assert make_decoder(None, None, None, None, None, 1.0) is None
    code, _, err = program("lm", "tune", folder, arpa, "--weights", "1,x")
    assert code == 2 and err == "error: --weights 1,x: expected numbers from 0, such as 0.5,1\n"
    code, _, err = program("lm", "train", tmp_path / "no", tmp_path / "out")
    assert code == 2 and err.startswith(f"error: {tmp_path / 'no'} is no text file: ")
