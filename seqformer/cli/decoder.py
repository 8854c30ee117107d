"""The options with which a command decodes by a beam search, language models and hot words."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from seqformer.errors import InputError

Lm = Annotated[
    Path | None, typer.Option(help="A language model: an ARPA file, a run that learned texts, or the file of lm tune.")
]
Beam = Annotated[int | None, typer.Option(help="Prefixes of the beam search, 16 with a language model or hot words.")]
LmWeight = Annotated[float | None, typer.Option(help="Of the language model, 0.5 if it was not tuned.")]
LengthBonus = Annotated[float | None, typer.Option(help="For each word, or character, of the language model.")]
Hot = Annotated[str | None, typer.Option(help="Words to favour, as 'name,other name'.")]
HotBonus = Annotated[float, typer.Option(help="For each character of a hot word.")]
Rescore = Annotated[
    Path | None,
    typer.Option(help="A model to order the texts of the beam by: an ARPA file, or a run that learned texts."),
]
RescoreWeight = Annotated[float | None, typer.Option(help="Of that model, 0.3 if it was not tuned.")]
Decoder = Annotated[str | None, typer.Option(help="flashlight, or flashlight:LEXICON, in place of our own beam.")]
RescoreBonus = Annotated[float | None, typer.Option(help="For each word, beside that model.")]


def make_decoder(
    lm: Lm = None,
    beam: Beam = None,
    lm_weight: LmWeight = None,
    length_bonus: LengthBonus = None,
    hot: Hot = None,
    hot_bonus: HotBonus = 1.0,
    rescore: Rescore = None,
    rescore_weight: RescoreWeight = None,
    rescore_bonus: RescoreBonus = None,
    decoder: Decoder = None,
    rows: Sequence[str] = (),
):
    """The decoder that the options of a command describe; None, greedy decoding, when there are none.

    What is given beside a tuned file replaces what was tuned. ``rows`` are ids that no neural language model may have
    been trained on. Raises InputError when a value cannot be, or when it was.
    """
    from seqformer.decode.beam_decoder import BeamDecoder
    from seqformer.lm.flashlight import Flashlight
    from seqformer.speech.language_models import open_model
    from seqformer.speech.tune_lm import read_lm

    if lm is None and (lm_weight is not None or length_bonus is not None):
        raise InputError("--lm-weight and --length-bonus are of a language model: --lm")
    given = {"beam": beam, "weight": lm_weight, "bonus": length_bonus}
    given |= {"rescore_weight": rescore_weight, "rescore_bonus": rescore_bonus}
    for name, least in (("beam", 1), ("weight", 0), ("rescore_weight", 0)):
        if given[name] is not None and given[name] < least:
            option = {"weight": "lm-weight"}.get(name, name.replace("_", "-"))
            raise InputError(f"--{option} {given[name]}: expected {least} or more")
    if hot_bonus < 0:
        raise InputError(f"--hot-bonus {hot_bonus}: expected 0 or more")
    model, settings = read_lm(lm, rows) if lm else (None, {})
    settings |= {"rescorer": open_model(rescore, rows)} if rescore else {}
    if "rescorer" not in settings and (rescore_weight is not None or rescore_bonus is not None):
        raise InputError("--rescore-weight and --rescore-bonus are of a second language model: --rescore")
    if lm is None and beam is None and hot is None and rescore is None and decoder is None:
        return None
    engine, colon, lexicon = (decoder or "beam").partition(":")
    if engine not in ("beam", "flashlight") or (colon and (engine == "beam" or not lexicon)):
        raise InputError(f"--decoder {decoder}: expected beam, flashlight or flashlight:LEXICON")
    settings |= {"engine": Flashlight(lexicon or None)} if engine == "flashlight" else {}
    words = tuple(word.strip() for word in (hot or "").split(",") if word.strip())
    settings |= {name: value for name, value in given.items() if value is not None}
    return BeamDecoder(model, words=words, hot=hot_bonus, **settings)


def with_decoder(command: Callable) -> Callable:
    """Give a command the options of ``make_decoder``; it gets them as ``make(rows) -> decoder``."""
    options = [option for option in inspect.signature(make_decoder).parameters.values() if option.name != "rows"]
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "make"]

    @wraps(command)
    def run(**given):
        chosen = {option.name: given.pop(option.name) for option in options}
        return command(**given, make=lambda rows=(): make_decoder(**chosen, rows=rows))

    run.__signature__ = inspect.Signature([*own, *options])
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return run
