"""The command line of language models, and the options with which other commands use one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from seqformer.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Train, measure and weigh n-gram language models.")
Lm = Annotated[Path | None, typer.Option(help="A language model: an ARPA file, or the file of lm tune.")]
Beam = Annotated[int | None, typer.Option(help="Prefixes of the beam search, 16 with a language model or hot words.")]
LmWeight = Annotated[float | None, typer.Option(help="Of the language model, 0.5 if it was not tuned.")]
LengthBonus = Annotated[float | None, typer.Option(help="For each word, or character, of the language model.")]
Hot = Annotated[str | None, typer.Option(help="Words to favour, as 'name,other name'.")]
HotBonus = Annotated[float, typer.Option(help="For each character of a hot word.")]


def make_decoder(
    lm: Path | None, beam: int | None, weight: float | None, bonus: float | None, hot: str | None, hot_bonus: float
):
    """The decoder that the options of a command describe; None, greedy decoding, when there are none.

    What is given beside a tuned file replaces what was tuned. Raises InputError when a value cannot be.
    """
    from seqformer.decode.beam_decoder import BeamDecoder
    from seqformer.tune_lm import read_lm

    if lm is None and (weight is not None or bonus is not None):
        raise InputError("--lm-weight and --length-bonus are of a language model: --lm")
    if lm is None and beam is None and hot is None:
        return None
    given = {"beam": beam, "weight": weight, "bonus": bonus}
    for name, least in (("beam", 1), ("weight", 0)):
        if given[name] is not None and given[name] < least:
            raise InputError(f"--{name.replace('weight', 'lm-weight')} {given[name]}: expected {least} or more")
    if hot_bonus < 0:
        raise InputError(f"--hot-bonus {hot_bonus}: expected 0 or more")
    model, tuned = read_lm(lm) if lm else (None, {})
    words = tuple(word.strip() for word in (hot or "").split(",") if word.strip())
    settings = tuned | {name: value for name, value in given.items() if value is not None}
    return BeamDecoder(model, words=words, hot=hot_bonus, **settings)


@app.command()
def train(
    text: Annotated[Path, typer.Argument(help="A text file, one sentence a line.")],
    out: Annotated[Path, typer.Argument(help="The ARPA file to write.")],
    order: Annotated[int, typer.Option(help="Tokens of the longest n-gram.")] = 4,
    units: Annotated[Literal["words", "chars"], typer.Option(help="What a token is.")] = "words",
) -> None:
    """Train an n-gram model with interpolated modified Kneser-Ney smoothing."""
    from seqformer.lm.kneser_ney import train_kneser_ney, write_arpa

    model = train_kneser_ney(read_lines(text), order, units)
    write_arpa(model, out)
    counts = ", ".join(f"{len(entries):,} {n}-grams" for n, entries in enumerate(model.entries, start=1))
    typer.echo(f"{counts} -> {out}")


@app.command()
def perplexity(
    lm: Annotated[Path, typer.Argument(help="An ARPA file, or the file of lm tune.")],
    text: Annotated[Path, typer.Argument(help="A text file, one sentence a line.")],
) -> None:
    """Measure a model on a text it was not trained on."""
    from seqformer.lm.ngram import perplexity as measure
    from seqformer.tune_lm import read_lm

    model, _ = read_lm(lm)
    every, known, total, unknown = measure(model, read_lines(text))
    typer.echo(f"perplexity {every:.2f} of {total:,} {model.units}; {known:.2f} without the {unknown:,} unknown")


@app.command()
def tune(
    run: Annotated[Path, typer.Argument(help="A finished run, such as runs/demo.")],
    lm: Annotated[Path, typer.Argument(help="An ARPA file, of other texts than those of the run's rows.")],
    out: Annotated[Path | None, typer.Option(help="The file to write, <run>/lm.json by default, for --lm.")] = None,
    weights: Annotated[str, typer.Option(help="Weights to try.")] = "0.2,0.4,0.6,0.8,1.0",
    bonuses: Annotated[str, typer.Option(help="Length bonuses to try.")] = "0,0.5,1,2",
    beam: Annotated[int, typer.Option(help="Prefixes of the beam search.")] = 16,
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 1000,
) -> None:
    """Choose the weight and bonus of a language model on rows that the fold which reads them was not trained on."""
    from seqformer.cli import open_run
    from seqformer.decode.beam_decoder import BeamDecoder
    from seqformer.train.log import RunLog
    from seqformer.tune_lm import tune_lm

    if beam < 1 or rows < 1:
        raise InputError(f"--beam {beam}, --rows {rows}: expected 1 or more")
    path = out or run / "lm.json"
    grid = _numbers(weights, "--weights", 0.0), _numbers(bonuses, "--bonuses", float("-inf"))
    found = tune_lm(open_run(run), lm, path, *grid, BeamDecoder(beam=beam), rows)
    tried = [[f"{one['weight']:g}", f"{one['bonus']:g}", f"{one['score']:.4f}"] for one in found["grid"]]
    tried += [["no language model", "", f"{found['without']:.4f}"]]
    tried += [[f"best: {found['weight']:g}", f"{found['bonus']:g}", f"{found['score']:.4f}"]]
    with RunLog(None) as log:
        log.table(f"{path}: {found['rows']} rows", ["weight", "bonus", found["metric"]], tried)


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
