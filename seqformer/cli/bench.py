"""The command that times this machine; what it runs is the checkout's folder ``benchmarks``, not in the package."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from seqformer.errors import InputError, nearest


def bench(
    parts: Annotated[list[str] | None, typer.Argument(metavar="[PART]...", help="All by default.")] = None,
    backbones: Annotated[str, typer.Option(help="Of the part encoders.")] = "squeezeformer_s",
    shapes: Annotated[str, typer.Option(help="Items x frames of forward passes.")] = "8x1000,1x6000",
    train_shapes: Annotated[str, typer.Option(help="Items x frames of training passes.")] = "8x1000",
    peers: Annotated[str, typer.Option(help="A pattern of who is compared, such as '*squeezeformer'.")] = "*",
    manifest: Annotated[Path | None, typer.Option(help="Recordings with texts; made-up ones by default.")] = None,
    rounds: Annotated[int, typer.Option(help="How often everything is timed.")] = 5,
    threads: Annotated[int, typer.Option(help="Of torch; one counts processor time, several the wall's.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 by autocast.")] = "fp32",
    quick: Annotated[bool, typer.Option(help="Sizes of seconds, to see that all runs.")] = False,
    out: Annotated[Path | None, typer.Option(help="The JSON to write, in runs/bench by default.")] = None,
) -> None:
    """Time ours and other libraries, those that are installed, in turns, as shares of what this machine does at best.

    Parts: encoders, attention, depthwise, norms, logmel, ctc, transducer, decode, wer, audio, pipeline, step,
    streaming and lengths.
    """
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {device}: expected cpu, or cuda where torch finds one")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"--precision {precision}: expected fp32 or bf16")
    report = checkout_report()
    unknown = [part for part in parts or [] if part not in report.PARTS]
    if unknown:
        raise InputError(f"no part {unknown[0]!r}; {nearest(unknown[0], list(report.PARTS))}")
    from benchmarks.setting import Setting

    setting = Setting(
        device, threads, rounds, precision, peers, quick, tuple(backbones.split(",")),
        pairs("--shapes", shapes), pairs("--train-shapes", train_shapes), manifest,
    )  # fmt: skip
    found = report.measure(parts or list(report.PARTS), setting, typer.echo)
    path = out or Path("runs/bench") / f"{found['date'].replace(':', '')}.json"
    report.write(found, path)
    for who, why in setting.absent.items():
        typer.echo(f"absent: {who}, {why}")
    typer.echo(f"-> {path}")


def checkout_report():
    """``benchmarks.report`` of the checkout that this package is in, or of the working folder."""
    roots = [Path(__file__).resolve().parents[2], Path.cwd()]
    root = next((root for root in roots if (root / "benchmarks" / "report.py").is_file()), None)
    if root is None:
        raise InputError("bench runs the folder benchmarks of a checkout, and none is here; change into one")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from benchmarks import report

    return report


def pairs(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """8x1000,1x6000 -> ((8, 1000), (1, 6000))."""
    try:
        found = tuple(tuple(int(one) for one in pair.split("x")) for pair in text.split(",") if pair)
    except ValueError:
        found = ((),)
    if any(len(pair) != 2 or min(pair) < 1 for pair in found):
        raise InputError(f"{option} {text}: expected items x frames, such as 8x1000,1x6000")
    return found
