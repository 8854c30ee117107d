"""``make demo`` in small: the same program, fewer words, one epoch."""

import json
import sys

import pytest

pytest.importorskip("espeakng_loader")

import seqformer
from competitions.librispeech.demo import demo

TINY = ["train.epochs=1", "backbone.dim=16", "backbone.depth=1", "backbone.reduce_at=null", "backbone.recover_at=null"]


def test_demo_runs_end_to_end_and_again(tmp_path, monkeypatch, capfd):
    arguments = ["--data", tmp_path / "data", "--runs", tmp_path / "runs", "--utterances", 48, *TINY]
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
    for again in (False, True):
        with pytest.raises(SystemExit) as stop:
            seqformer.run_command(demo)
        assert not stop.value.code
        printed = capfd.readouterr().out
        assert printed.count("said  ") == printed.count("heard  ") == 3 and "out of fold" in printed
        assert ("finished before" in printed) is again
    metrics = json.loads((tmp_path / "runs" / "demo" / "metrics.json").read_text())
    assert [fold["fold"] for fold in metrics["folds"]] == ["0", "1", "2"] and metrics["rows"] == 48
