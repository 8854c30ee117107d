"""The real thing: LibriSpeech audio in, text out. Slow, and only where the optional data is."""

from pathlib import Path

import polars
import pytest

from competitions.librispeech.prepare import prepare
from seqformer.config import read_config
from seqformer.predict import TrainedRun
from seqformer.train.crossval import train_run

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "librispeech_mini" / "LibriSpeech" / "train-mini"

# A smaller model than the config's, without what keeps it from learning by heart.
BY_HEART = (
    "run=by_heart seed=0 data.where={} data.max_seconds=40 data.workers=0 data.batch_seconds=40 dataset.speed=[] "
    "folds.use=full backbone.name=conformer backbone.dim=96 backbone.depth=4 backbone.heads=4 backbone.dropout=0 "
    "frontend.spec_augment=null train.precision=fp32 train.threads=1 train.epochs=50 train.ema=0 optim.weight_decay=0"
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the optional LibriSpeech mini")
def test_learns_32_real_utterances_by_heart(tmp_path):
    table = polars.read_parquet(prepare(DATA, tmp_path / "all"))
    table = table.sample(32, seed=0).with_columns(path=polars.lit(str(tmp_path / "all" / "audio")))
    table.write_parquet(tmp_path / "few.parquet")
    changes = [*BY_HEART.split(), f"data.manifest={tmp_path / 'few.parquet'}"]
    train_run(read_config(ROOT / "configs" / "librispeech_mini.yaml", changes), tmp_path, quiet=True)
    name, value, rows = TrainedRun(tmp_path / "by_heart").score(table, seen=True)
    print(f"{name} {value:.4f} on {rows} utterances, {table['seconds'].sum():.0f} s")
    assert name == "wer" and rows == 32 and value < 0.05
