"""A profile for a person, as tables, and for a program, as JSON: the same figures."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from seqformer.backbones.ladder import LADDER
from seqformer.checkpoint import write_file
from seqformer.model import create_backbone
from seqformer.profile import PARTS, Profile, count_flops, count_parameters


def print_profile(profile: Profile, json_path: str | None = None) -> None:
    """Tables on the terminal and JSON in a file, or, where that is ``-``, JSON alone."""
    text = json.dumps(asdict(profile), indent=1)
    if json_path == "-":
        print(text)
        return
    console = Console(highlight=False, soft_wrap=True)
    for table in profile_tables(profile):
        console.print(table)
    if json_path is not None:
        write_file(Path(json_path), text + "\n")


def profile_tables(profile: Profile) -> list[Table]:
    """The profile for a terminal: parts, then everything that is one figure."""
    arguments = "".join(f" {key}={value}" for key, value in profile.arguments.items())
    parts = Table(title=f"{profile.name}{arguments}, {profile.frames} frames of {profile.in_dim}", title_justify="left")
    for column in ("part", "parameters", "share", "GFLOPs (A)", "share"):
        parts.add_column(column, justify="left" if column == "part" else "right")
    shown = [part for part in PARTS if profile.parameters_by_part[part] or profile.flops_a_by_part[part]]
    for part in [*shown, "total"]:
        count = profile.parameters_by_part.get(part, profile.parameters)
        work = profile.flops_a_by_part.get(part, profile.flops_a)
        shares = f"{count / profile.parameters:.1%}", f"{work / max(profile.flops_a, 1):.1%}"
        parts.add_row(part.replace("_", " "), f"{count:,}", shares[0], f"{work / 1e9:.2f}", shares[1])
    facts = Table(show_header=False)
    for name, value in _facts(profile).items():
        facts.add_row(name, value)
    return [parts, facts]


def _facts(profile: Profile) -> dict[str, str]:
    operators = profile.flops_a_by_operator.items()
    field = "whole item" if profile.receptive_frames is None else f"{profile.receptive_frames} input frames"
    found = {
        "width, stride": f"{profile.dim}, {profile.stride}",
        "GFLOPs A (torch's counter)": f"{profile.flops_a / 1e9:.2f}",
        "GFLOPs B (the paper's)": f"{profile.flops_b / 1e9:.2f}",
        "GFLOPs A by operator": ", ".join(f"{name} {value / 1e9:.2f}" for name, value in operators if value),
        "receptive field": f"{field} without attention, the whole item with it" if profile.attends else field,
        "kept for backward": f"{profile.activation_bytes / 1e6:,.1f} MB in float32, batch {profile.batch}",
    }
    if profile.forward_ms is not None:
        place = f"batch {profile.batch}, {profile.device}, {profile.threads} threads"
        found["forward"] = f"{profile.forward_ms:,.1f} ms, {place}"
        found["training step"] = f"{profile.step_ms:,.1f} ms, {place}"
    return found


def print_ladder(seconds: int = 30) -> None:
    """Parameters and FLOPs of each step from Conformer to Squeezeformer, beside the published WER."""
    table = Table(title=f"{seconds} s of 80 features at 10 ms", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("preset", "changed"):
        table.add_column(column, no_wrap=True)
    for column in ("parameters", "GFLOPs A", "GFLOPs B", "clean", "other"):
        table.add_column(column, justify="right")
    for step in LADDER:
        with torch.device("meta"):
            backbone = create_backbone(step.name, in_dim=80)
        parameters, flops = sum(count_parameters(backbone).values()), count_flops(backbone, 100 * seconds)
        wer = ["" if value is None else f"{value:.2f}" for value in (step.test_clean, step.test_other)]
        figures = [f"{parameters:,}", f"{flops.a / 1e9:.2f}", f"{flops.b / 1e9:.2f}"]
        table.add_row(step.name, step.changed, *figures, *wer)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("A: torch's counter, B: the paper's way. WER in %: Kim et al. 2022, table 1, where at hand")
