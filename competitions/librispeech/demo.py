"""The demo, ``make demo``: speak a corpus, prepare it, train a recogniser in 3 folds by voice, show what it hears.

The commands are the ordinary ones of LibriSpeech; what is finished already is skipped, so a second run goes on.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import seqformer
from competitions.librispeech.prepare import prepare
from competitions.librispeech.speak import speak

CONFIG = Path("configs/demo.yaml")


def demo(
    data: Annotated[Path, typer.Option(help="Where the corpus and its manifest go.")] = Path("data/demo"),
    runs: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs"),
    utterances: Annotated[int, typer.Option(help="How many phrases to speak.")] = 2400,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")
    ] = None,
) -> None:
    """Speak, prepare, train, transcribe."""
    start = time.perf_counter()
    print(
        f"1/4  espeak-ng speaks {utterances:,} phrases of command words in 48 voices into {data}/LibriSpeech",
        flush=True,
    )
    speak(data / "LibriSpeech", utterances)
    print("\n2/4  the corpus becomes a manifest", flush=True)
    if not (data / "manifest.parquet").exists():
        prepare(data / "LibriSpeech", data)
    print(f"\n3/4  seqformer train {CONFIG}: each fold is scored on 16 voices that it never heard", flush=True)
    changes = [f"data.manifest={data / 'manifest.parquet'}", *(changes or [])]
    command = [sys.executable, "-m", "seqformer", "train", str(CONFIG), "--root", str(runs), *changes]
    if code := subprocess.call(command):
        raise SystemExit(code)
    print("\n4/4  what the recogniser of each fold hears in a voice that is new to it", flush=True)
    show(runs / "demo" / "oof.parquet")
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nDone in {minutes:.1f} minutes. All predictions: {runs}/demo/oof.parquet; every step: {runs}/demo/log.jsonl."
    )
    print(f"Next: .venv/bin/seqformer transcribe {runs}/demo FILE, or the README for real speech.")


def show(path: Path) -> None:
    """One prediction of each fold beside what was said."""
    import polars

    for row in polars.read_parquet(path).unique("fold", keep="first", maintain_order=True).iter_rows(named=True):
        print(f"     said   {row['truth']}\n     heard  {row['prediction']}")


if __name__ == "__main__":
    seqformer.run_command(demo)
