"""The command line of language models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from seqformer.cli.decoder import Lm, Rescore
from seqformer.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Train, measure and weigh language models.")


@app.command()
def train(
    text: Annotated[Path, typer.Argument(help="A text file, one sentence a line, or a run that was trained on texts.")],
    out: Annotated[Path, typer.Argument(help="The ARPA file to write.")],
    order: Annotated[int, typer.Option(help="Tokens of the longest n-gram.")] = 4,
    units: Annotated[Literal["words", "chars"], typer.Option(help="What a token is.")] = "words",
    fold: Annotated[str, typer.Option(help="Of a run: take the texts that this fold is trained on.")] = "0",
) -> None:
    """Train an n-gram model with interpolated modified Kneser-Ney smoothing."""
    from seqformer.cli import open_run
    from seqformer.data.manifest import read_manifest
    from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa
    from seqformer.speech.language_models import fold_texts

    texts, rows = read_lines(text) if not text.is_dir() else [], None
    if text.is_dir():
        run = open_run(text)
        texts, rows = fold_texts(run, fold, read_manifest(run.config.data.manifest, run.config.data.where))
    model = train_kneser_ney(texts, order, units)
    model.rows = rows
    write_arpa(model, out)
    counts = ", ".join(f"{len(entries):,} {n}-grams" for n, entries in enumerate(model.entries, start=1))
    typer.echo(f"{len(texts):,} texts, {counts} -> {out}")


@app.command()
def perplexity(
    lm: Annotated[Path, typer.Argument(help="An ARPA file, a run that learned texts, or the file of lm tune.")],
    text: Annotated[Path, typer.Argument(help="A text file, one sentence a line.")],
) -> None:
    """Measure a model on a text it was not trained on."""
    import math

    from seqformer.lm.neural import NeuralLM
    from seqformer.lm.ngram import perplexity as measure
    from seqformer.speech.tune_lm import read_lm

    (model, _), lines = read_lm(lm), read_lines(text)
    if isinstance(model, NeuralLM):
        log_p, words = sum(model.text_log_probs(lines)), sum(len(line.split()) + 1 for line in lines)
        return typer.echo(f"perplexity {math.exp(-log_p / words):.2f} of {words:,} words and ends of lines")
    every, known, total, unknown = measure(model, lines)
    typer.echo(f"perplexity {every:.2f} of {total:,} {model.units}; {known:.2f} without the {unknown:,} unknown")


@app.command()
def tune(
    run: Annotated[Path, typer.Argument(help="A finished run, such as runs/demo.")],
    lm: Annotated[Path | None, typer.Argument(help="The language model of the search, if there shall be one.")] = None,
    rescore: Rescore = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, <run>/lm.json by default, for --lm.")] = None,
    weights: Annotated[str, typer.Option(help="Weights to try.")] = "0.2,0.4,0.6,0.8,1.0",
    bonuses: Annotated[str, typer.Option(help="Length bonuses to try.")] = "0,0.5,1,2",
    rescore_weights: Annotated[str, typer.Option(help="Weights to try of --rescore.")] = "0,0.1,0.2,0.3,0.5,0.8",
    rescore_bonuses: Annotated[str, typer.Option(help="Bonuses for each word to try, beside it.")] = "-0.5,0,0.5,1",
    beam: Annotated[int, typer.Option(help="Prefixes of the beam search.")] = 16,
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 1000,
) -> None:
    """Choose the weights and bonuses of language models on rows that the fold which reads them was not trained on."""
    from seqformer.cli import open_run
    from seqformer.decode.beam_decoder import BeamDecoder
    from seqformer.speech.tune_lm import Grid, tune_lm
    from seqformer.train.log import RunLog

    if beam < 1 or rows < 1:
        raise InputError(f"--beam {beam}, --rows {rows}: expected 1 or more")
    if lm is None and rescore is None:
        raise InputError("there is no language model to tune: give one, or --rescore, or both")
    path, least = out or run / "lm.json", float("-inf")
    first = _numbers(weights, "--weights", 0.0), _numbers(bonuses, "--bonuses", least)
    second = _numbers(rescore_weights, "--rescore-weights", 0.0), _numbers(rescore_bonuses, "--rescore-bonuses", least)
    found = tune_lm(open_run(run), lm, path, Grid(*first, *second), BeamDecoder(beam=beam), rows, rescore)
    shown = [one for one in found["grid"] if "rescore_weight" not in one] if lm else []
    tried = [[f"{one['weight']:g}", f"{one['bonus']:g}", "", "", f"{one['score']:.4f}"] for one in shown]
    tried.append(["no language model", "", "", "", f"{found['without']:.4f}"])
    best = [f"{found[name]:g}" if name in found else ""
            for name in ("weight", "bonus", "rescore_weight", "rescore_bonus")]  # fmt: skip
    tried.append([f"best: {best[0]}", *best[1:], f"{found['score']:.4f}"])
    names = ["weight", "bonus", "of rescoring", "its bonus", found["metric"]]
    with RunLog(None) as log:
        log.table(f"{path}: {found['rows']} rows", names, tried)


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="A finished run, such as runs/demo.")],
    lm: Lm = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, <run>/confidence.json by default.")] = None,
    beam: Annotated[int, typer.Option(help="Prefixes of the beam search, if the file of lm tune says none.")] = 16,
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 1000,
) -> None:
    """How sure words are and how often right, on rows that the fold which reads them was not trained on."""
    from seqformer.cli import open_run
    from seqformer.speech.word_confidence import calibrate_words
    from seqformer.train.log import RunLog

    if beam < 1 or rows < 1:
        raise InputError(f"--beam {beam}, --rows {rows}: expected 1 or more")
    path = out or run / "confidence.json"
    found = calibrate_words(open_run(run), lm, path, beam, rows)
    after = {one["from"]: one for one in found["table_after"]}
    lines = []
    for start in sorted({one["from"] for one in found["table"]} | after.keys()):
        sides = [next((one for one in found["table"] if one["from"] == start), None), after.get(start)]
        cells = [[str(one["words"]), f"{one['confidence']:.3f}", f"{one['right']:.3f}"] if one else [""] * 3
                 for one in sides]  # fmt: skip
        lines.append([f"{start:g}", *cells[0], *cells[1]])
    lines.append(["error", "", "", f"{found['before']:.4f}", "", "", f"{found['after']:.4f}"])
    names = ["from", *["words", "confidence", "right"], *["words, calibrated", "confidence", "right"]]
    with RunLog(None) as log:
        log.table(f"{path}: {found['words']} words", names, lines)


def read_lines(path: Path) -> list[str]:
    """Lines of a text that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no text file: {error}") from error
    return [line for line in lines if line.strip()]


def _numbers(text: str, name: str, least: float) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(least <= one < float("inf") for one in found):
        raise InputError(f"{name} {text}: expected numbers{' from 0' if least == 0 else ''}, such as 0.5,1")
    return found
