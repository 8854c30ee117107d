"""The command line of noisy student training."""

from pathlib import Path
from typing import Annotated

import typer

from seqformer.cli.decoder import Beam, LengthBonus, Lm, LmWeight, make_decoder
from seqformer.errors import InputError


def student(
    config: Annotated[Path, typer.Argument(help="The YAML of generation 0, the teacher.")],
    unlabelled: Annotated[Path, typer.Argument(help="A manifest; a target column only tells how true labels are.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    generations: Annotated[int, typer.Option(help="Students, each taught by the one before.")] = 2,
    threshold: Annotated[str, typer.Option(help="Least score by generation, in deviations.")] = "0,-0.5,-1",
    pace: Annotated[float, typer.Option(help="Units a second may leave those of the labelled rows so far.")] = 1.5,
    balance: Annotated[float, typer.Option(help="Least share of labels to leave to balance tokens; 1: all.")] = 0.9,
    root: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    lm: Lm = None,
    beam: Beam = None,
    lm_weight: LmWeight = None,
    length_bonus: LengthBonus = None,
) -> None:
    """Train a teacher and generations of noisy students on its labels; an interrupted loop goes on where it stopped."""
    from seqformer.cli import load_competition
    from seqformer.config import read_config
    from seqformer.decode.beam_decoder import BeamDecoder
    from seqformer.speech.student import Choice, train_generations

    if generations < 1 or pace < 1 or not 0 < balance <= 1:
        raise InputError(
            f"--generations {generations}, --pace {pace:g}, --balance {balance:g}: expected 1 or more, 1 or more, "
            "above 0 to 1"
        )
    try:
        least = tuple(float(one) for one in threshold.split(","))
    except ValueError:
        raise InputError(f"--threshold {threshold}: expected numbers, such as 0,-0.5,-1") from None
    plain = read_config(config, overrides or [])
    load_competition(plain.get("competition"))
    decoder = make_decoder(lm, beam, lm_weight, length_bonus) or BeamDecoder()
    train_generations(plain, root, unlabelled, generations, decoder, Choice(least, pace, balance), lm)
