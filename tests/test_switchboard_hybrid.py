"""The hybrid end to end on made-up recordings: align by a CTC run, train on the states, read texts with a model."""

import itertools
import re
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from conftest import change

import seqformer
from competitions.switchboard_hybrid.prepare import prepare
from seqformer.cli import load_competition
from seqformer.config import build_config, read_config
from seqformer.data.targets import fit_targets
from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.lm.kneser_ney import train_kneser_ney
from seqformer.model import create_model
from seqformer.predict import TrainedRun, load_targets
from seqformer.train.crossval import check_parts, train_run
from seqformer.train.optim import make_optimizer

torch.set_num_threads(1)
WORDS, RATE = ("ab", "ba", "c"), 8000
CTC = {
    "run": "ctc",
    "data": {"manifest": "", "batch_frames": 40_000},
    "folds": {"kind": "column", "by": "half", "use": "all"},
    "text": {"kind": "chars"},
    "frontend": {"name": "logmel", "rate": RATE, "mels": 12},
    "backbone": {"name": "conformer", "dim": 16, "depth": 1, "heads": 1, "kernel": 3, "stem_channels": 4},
    "head": {"name": "ctc"},
    "optim": {"lr": 1e-2},
    "train": {"epochs": 1, "device": "cpu", "threads": 1},
    "metric": {"name": "wer"},
}
STATES = {"name": "framewise", "target": "spoken", "focal": 2.0}
HYBRID = CTC | {
    "run": "hybrid",
    "folds": {"kind": "column", "by": "half", "use": 0},
    "hmm": {"states": 2},
    "frontend": {"name": "gammatone", "rate": RATE, "bands": 8, "spec_augment": {"steps": [1, 2], "time_width": 3}},
    "backbone": {"name": "conformer_swb", "dim": 16, "depth": 3, "heads": 1},
    "head": {
        "states": STATES,
        "lower": STATES | {"at": 0, "hidden": 8, "weight": 0.3, "train_only": True},
        "middle": STATES | {"at": 1, "hidden": 8, "weight": 0.3, "train_only": True},
    },
    "optim": {"name": "nadamw", "lr": 1e-2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs ctc and hybrid, manifest.parquet and spoken.parquet."""
    root = tmp_path_factory.mktemp("hybrid")
    rng, table = np.random.default_rng(0), []
    with seqformer.StoreWriter(root / "audio", "int16") as store:
        for row in range(16):
            text = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
            tones = [np.sin(np.arange(rng.integers(700, 900)) * (0.3 + 0.5 * " abc".index(c))) for c in text]
            samples = np.concatenate([tone * (c != " ") for tone, c in zip(tones, text, strict=True)])
            place = {"id": f"row{row:02d}", "path": "audio", "row": store.add((9000 * samples).astype(np.int16))}
            table.append(place | {"frames": len(samples), "rate": RATE, "text": text, "half": row % 2})
    seqformer.write_manifest(table, root / "manifest.parquet")
    train_run(change(CTC, data__manifest=str(root / "manifest.parquet")), root, quiet=True)
    prepare(root / "ctc", root / "manifest.parquet", root / "spoken.parquet", states=2)
    train_run(change(HYBRID, data__manifest=str(root / "spoken.parquet")), root, quiet=True)
    return root


def test_each_fold_learns_from_an_alignment_of_its_own_rows_only(runs):
    table = seqformer.read_manifest(runs / "spoken.parquet")
    schema = table.schema["spoken"].to_schema()
    proofs = [load_targets(runs / "ctc" / f"fold{fold}").fitted_on for fold in (0, 1)]
    assert list(schema) == ["text", *proofs]
    fit = {"columns": ["spoken"], "text": {"kind": "chars", "vocab": 0, "alphabet": None}, "known": table}
    fit["hmm"] = {"states": 2, "prior_scale": 0.5, "lexicon": None, "bonus": 0.0, "beam": 100}
    for fold, proof in enumerate(proofs):
        own, states = table.filter(table["half"] != fold), table["spoken"].struct.field(proof)
        assert states.is_null().to_list() == (table["half"] == fold).to_list()
        assert states.list.len().drop_nulls().to_list() == [-(-samples // 80) for samples in own["frames"]]
        encoder = fit_targets(own, **fit).encoders["spoken"]
        counts = np.bincount(states.explode().drop_nulls().to_numpy(), minlength=encoder.size)
        assert encoder.field == proof and np.exp(encoder.log_prior) == pytest.approx((counts + 1) / (counts + 1).sum())
    assert load_targets(runs / "hybrid" / "fold0").encoders["spoken"].field == proofs[0]
    with pytest.raises(seqformer.InputError, match="no states by a model that was trained on the rows of this fold"):
        fit_targets(table.head(7), **fit)
    with pytest.raises(seqformer.InputError, match=r"has state \d+; 4 units of 1 states and silence are 5"):
        fit_targets(table.filter(table["half"] == 0), **fit | {"hmm": fit["hmm"] | {"states": 1}})


def test_a_run_reads_words_with_and_without_a_model(runs):
    run, table = TrainedRun(runs / "hybrid"), seqformer.read_manifest(runs / "spoken.parquet")
    oof = polars.read_parquet(runs / "hybrid" / "oof.parquet")
    assert oof["truth"].to_list() == table.filter(table["half"] == 0)["text"].to_list()
    decoder = BeamDecoder(train_kneser_ney(table["text"].to_list(), 2, "words"), weight=3.0)
    for found in (run.predict(table), run.predict(table, decoder=decoder)):
        assert {word for text in found.values() for word in text.split()} <= set(WORDS)
    assert run.score(table, seen=True, decoder=decoder)[0] == "wer"


ROOT = Path(__file__).parents[1]
ABLATIONS = re.findall(r"^\| .* \| `(.*)` \|$", (ROOT / "competitions/switchboard_hybrid/README.md").read_text(), re.M)


@pytest.mark.parametrize("line", ["run=as_it_is", *ABLATIONS])
def test_an_ablation_is_one_line_that_builds_and_steps(line):
    """Each of the README's, all parameters of the model getting a gradient."""
    overrides = re.findall(r"\S+=(?:\{.*?\}|\[.*?\]|\S+)", line)
    assert " ".join(overrides) == line
    plain = read_config(ROOT / "configs/fsdd_hybrid.yaml", ["backbone.dim=16", *overrides])
    config = build_config(plain)
    load_competition(config.competition)
    check_parts(config)
    head = config.head if "name" not in config.head else {"states": config.head}
    model = create_model(config.frontend, config.backbone, {name: {"vocab": 7} | part for name, part in head.items()})
    generator = torch.Generator().manual_seed(0)
    x, mask = 0.1 * torch.randn(2, 4000, generator=generator), torch.ones(2, 4000, dtype=torch.bool)
    targets = {"spoken": torch.randint(7, (2, 32), generator=generator)}
    found = model({"x": x}, mask, targets)
    assert found["loss"].isfinite() and set(found) == {"loss", *head}
    found["loss"].backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    make_optimizer(model, config.optim).step()
    assert any(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_states_follow_a_recording_that_is_played_faster(runs):
    from competitions.switchboard_hybrid.plugin import AlignedRows

    table = seqformer.read_manifest(runs / "spoken.parquet").filter(polars.col("half") == 1)
    targets = load_targets(runs / "hybrid" / "fold0")

    def faster(example, seed):
        return seqformer.Example(example.id, {"x": example.inputs["x"][::2]}, -(-example.frames // 2), example.targets)

    data, plain = (AlignedRows(table, targets, RATE, 0, augment, training=True) for augment in (faster, None))
    for row in range(len(data)):
        slow, quick = plain[0, row], data[0, row]
        assert len(quick.targets["spoken"]) == -(-quick.frames // 80)
        assert set(quick.targets["spoken"]) <= set(slow.targets["spoken"])
        assert slow.targets["spoken"].tolist() == table["spoken"][row][targets.encoders["spoken"].field]


def test_a_hybrid_aligns_its_rows_again(runs):
    """Every path goes through the text's states in order, with silence only where words may part."""
    table = seqformer.read_manifest(runs / "spoken.parquet")
    found, failed = seqformer.align_rows(runs / "hybrid", table)
    encoder = load_targets(runs / "hybrid" / "fold0").encoders["spoken"]
    states = found["spoken"].struct.field(encoder.field)
    assert not failed and states.is_null().to_list() == (table["half"] == 0).to_list()
    for text, path in zip(found["spoken"].struct.field("text"), states, strict=True):
        if path is not None:
            passed = [state for state, _ in itertools.groupby(path) if state]
            units = encoder.tokenizer.encode(text.replace(" ", ""))
            assert passed == [state for unit in units for state in encoder.topology.of(unit)]


def test_faults_of_prepare_are_one_line(runs, tmp_path):
    with pytest.raises(seqformer.InputError, match="already; name another"):
        prepare(runs / "ctc", runs / "spoken.parquet", tmp_path / "x.parquet")
    with pytest.raises(seqformer.InputError, match="16 are wanted, 3 are there"):
        seqformer.align_rows(runs / "ctc", seqformer.read_manifest(runs / "manifest.parquet").head(3))
    with pytest.raises(seqformer.InputError, match="states 0"):
        prepare(runs / "ctc", runs / "manifest.parquet", tmp_path / "x.parquet", states=0)
    assert not (tmp_path / "x.parquet").exists()
