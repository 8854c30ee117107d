"""What the papers on Squeezeformer and Conformer argue with, measured on the validation rows of a trained run.

How alike neighbouring frames are at each depth (the case for the temporal U-Net: Kim et al. 2022, section 3.1.1), how
large the learned scales have become (the case for a learned scale in place of a LayerNorm, section 3.1.2), and how far
each head looks. Padding is left out of every number.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from seqformer.analyze_plots import draw_attention, draw_scales, draw_similarity, require_matplotlib
from seqformer.batch import Batch
from seqformer.checkpoint import write_file
from seqformer.data.dataset import VALID
from seqformer.data.loader import load_batches
from seqformer.data.manifest import read_manifest
from seqformer.data.sampler import plan_dataset
from seqformer.errors import InputError
from seqformer.nn.attention import Attention
from seqformer.nn.mask import lengths_of, strided
from seqformer.nn.norm import LearnedScale
from seqformer.predict import TrainedRun, load_fold, make_dataset

if TYPE_CHECKING:
    import polars

DISTANCES = (1, 2, 3, 4)  # frames
_BRANCHES = {"A": "attention", "C": "convolution", "F": "feed-forward", "f": "half feed-forward"}  # of a layout


@dataclass(frozen=True)
class Depth:
    """One block. ``stride`` is input frames a frame, ``frame_ms`` its length where the rate of the input is known.

    ``similarity`` is the mean cosine of frames 1 to 4 apart, None where no item is as long. ``layer_norms`` and
    ``scales`` are the root mean squares of the learned factors by name, 1 at the start. ``distance_frames`` is the mean
    distance of each head and ``uniform_frames`` that of a head which attends to every frame alike.
    """

    block: int
    stride: int
    frame_ms: float | None
    similarity: list[float | None]
    layer_norms: dict[str, float]
    scales: dict[str, float]
    distance_frames: list[float]
    distance_ms: list[float] | None
    uniform_frames: float | None


def neighbour_similarity(x: Tensor, mask: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Sum of the cosines of real frames ``distance`` apart, and how many pairs: x (B, T, D), mask (B, T) -> (), ()."""
    x = nn.functional.normalize(x.double(), dim=-1)
    cosine_BT = (x[:, distance:] * x[:, :-distance]).sum(dim=-1)
    pair_BT = mask[:, distance:] & mask[:, :-distance]
    return cosine_BT.masked_fill(~pair_BT, 0).sum(), pair_BT.sum()


def attention_distance(weight_BHTT: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over real queries of the mean distance of each head (H,) and of uniform attention (), and their number ().

    Distances are in frames: of query i it is the sum over keys j of weight times |i - j|.
    """
    index = torch.arange(mask.shape[1], device=mask.device)
    apart_TT = (index[:, None] - index).abs().double()
    apart_BHT = (weight_BHTT.double() * apart_TT).sum(dim=-1)
    uniform_BT = mask.double() @ apart_TT / lengths_of(mask).clamp(min=1)[:, None]
    real = mask[:, None]
    return apart_BHT.masked_fill(~real, 0).sum(dim=(0, 2)), uniform_BT.masked_fill(~mask, 0).sum(), mask.sum()


def learned_factors(block: nn.Module, kind: type | tuple[type, ...], name: str) -> dict[str, float]:
    """Root mean square of one parameter of all modules of a kind in a block, by the path of the module.

    In a block with a layout a branch is called by what it is: "after 2 convolution" for "after.2".
    """
    letters, found = getattr(block, "letters", ""), {}
    for path, module in block.named_modules():
        factor = getattr(module, name, None) if isinstance(module, kind) else None
        if factor is not None:
            place, _, number = path.partition(".")
            word = _BRANCHES.get(letters[int(number)]) if letters and number.isdigit() else None
            label = f"{place} {number} {word}" if word else path
            found[label] = float(factor.detach().double().square().mean().sqrt())
    return found


class Sums:
    """Running sums by key, and what they add up to."""

    def __init__(self):
        self.found: dict[Any, list[Tensor]] = {}

    def add(self, key: Any, *values: Tensor) -> None:
        values = [value.detach().double().cpu() for value in values]
        before = self.found.get(key)
        self.found[key] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]

    def means(self, key: Any) -> list[Tensor | None]:
        """All sums of a key but the last, divided by the last; None where that is 0 or nothing was added."""
        *sums, count = self.found.get(key, [torch.tensor(0.0)] * 3)
        return [value / count if count else None for value in sums]


@torch.no_grad()
def analyze_model(model: nn.Module, batches: Iterable[Batch], input_ms: float | None) -> list[Depth]:
    """The numbers of every block of a SequenceModel, over batches; ``input_ms`` is an input frame of the backbone."""
    backbone, sums, longest, outputs = model.backbone, Sums(), {}, []
    attentions = {module: index for index, block in enumerate(backbone.blocks)
                  for module in block.modules() if isinstance(module, Attention)}  # fmt: skip

    def look(attention: Attention, inputs: tuple, keywords: dict) -> None:
        mask = inputs[1] if len(inputs) > 1 else keywords["mask"]
        weight_BHTT = attention.weights(*inputs, **keywords)
        sums.add(("distance", attentions[attention]), *attention_distance(weight_BHTT, mask))

    def keep(block: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, Tensor]) -> None:
        outputs.append(output if isinstance(output, tuple) else (output, inputs[1]))

    model.eval()
    device = next(model.parameters()).device
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in attentions]
    with _hooks(hooks + [block.register_forward_hook(keep) for block in backbone.blocks]):
        for batch in batches:
            batch = batch.to(device)
            features = model.frontend(batch.inputs, batch.mask)
            outputs.clear()
            backbone(features.x, features.mask, features.bias)
            for index, (x, mask) in enumerate(outputs):
                seen = features.mask.shape[1], x.shape[1]
                longest[index] = max(longest.get(index, seen), seen)
                for distance in DISTANCES:
                    sums.add(("similarity", index, distance), *neighbour_similarity(x, mask, distance))
    return [_depth(block, index, sums, _stride(*longest[index]), input_ms)
            for index, block in enumerate(backbone.blocks)]  # fmt: skip


def _depth(block: nn.Module, index: int, sums: Sums, stride: int, input_ms: float | None) -> Depth:
    similarity = [sums.means(("similarity", index, distance))[0] for distance in DISTANCES]
    distance, uniform = sums.means(("distance", index))
    frame_ms = input_ms and input_ms * stride
    frames = [] if distance is None else distance.tolist()
    return Depth(
        block=index,
        stride=stride,
        frame_ms=frame_ms,
        similarity=[None if value is None else float(value) for value in similarity],
        layer_norms=learned_factors(block, (nn.LayerNorm, nn.RMSNorm), "weight"),
        scales=learned_factors(block, LearnedScale, "scale"),
        distance_frames=frames,
        distance_ms=[frame_ms * value for value in frames] if frame_ms else None,
        uniform_frames=None if uniform is None else float(uniform),
    )


def _stride(frames: int, reduced: int) -> int:
    """The stride that leads from one number of frames to another; a power of two where several do."""
    low, high = strided(frames, reduced), (frames - 1) // (reduced - 1) if reduced > 1 else frames
    power = 2 ** (low - 1).bit_length()
    return power if power <= high or reduced == 1 else low if low <= high else round(frames / reduced)


@contextmanager
def _hooks(hooks: list) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def validation_rows(run: TrainedRun, fold: int, most: int) -> "polars.DataFrame":
    """Up to ``most`` rows, evenly spread over those that a finished fold of a run was validated on.

    Raises InputError when the fold is not finished, the manifest has lost its rows, or ``most`` is below 1.
    """
    import polars

    if f"fold{fold}" not in run.names:
        raise InputError(f"{run.folder} has no finished fold {fold}; finished: {', '.join(run.names)}")
    if most < 1:
        raise InputError(f"rows: found {most}; expected 1 or more")
    folds = polars.read_parquet(run.folder / "folds.parquet").filter(polars.col("fold") == fold)
    table = read_manifest(run.config.data.manifest, run.config.data.where)
    table = table.filter(polars.col("id").is_in(folds["id"].to_list()))
    if not table.height:
        raise InputError(f"{run.config.data.manifest} has none of the rows that fold {fold} was validated on")
    return table[np.linspace(0, table.height - 1, min(most, table.height)).round().astype(int)]


def analyze_run(folder: Path, fold: int = 0, rows: int = 64, out: Path | None = None) -> None:
    """Analyze one fold of a run: a table on the terminal, ``analysis.json`` and plots in ``out``, ``<run>/analysis``.

    Raises InputError as ``validation_rows`` does, and when matplotlib is not installed.
    """
    require_matplotlib()
    run, out = TrainedRun(folder), folder / "analysis" if out is None else out
    table = validation_rows(run, fold, rows)
    model, _ = load_fold(run.folder / f"fold{fold}", run.config, run.device)
    rate = getattr(model.frontend, "rate", None)
    dataset = make_dataset(run.config, table, None, rate)
    keys = [[(VALID, int(row)) for row in batch] for batch in plan_dataset(dataset, run.config.data, VALID)]
    hop = getattr(model.frontend, "hop", 1)
    input_ms = 1000 * hop / dataset.rate if dataset.rate else None
    depths = analyze_model(model, load_batches(dataset, keys, run.config.data.workers), input_ms)
    found = {"run": run.config.run, "fold": fold, "items": len(dataset), "distances_frames": DISTANCES}
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "analysis.json", json.dumps(found | {"blocks": [asdict(d) for d in depths]}, indent=1) + "\n")
    title = f"{run.config.run}, fold {fold}, {len(dataset)} validation items"
    pictures = {"similarity.png": draw_similarity(depths, title)}
    if any(depth.layer_norms or depth.scales for depth in depths):
        pictures["scales.png"] = draw_scales(depths, title)
    if any(depth.distance_frames for depth in depths):
        pictures["attention.png"] = draw_attention(depths, title)
    for name, content in pictures.items():
        write_file(out / name, content)
    print_depths(depths, title)
    print(f"{', '.join(['analysis.json', *pictures])} -> {out}")


def print_depths(depths: list[Depth], title: str) -> None:
    """One row a block, in ms where the rate is known; without attention, a line says so."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    unit = "ms" if depths[0].frame_ms is not None else "frames"
    digits, attends = 0 if unit == "ms" else 1, any(depth.distance_frames for depth in depths)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    columns = ["block", "stride", *(f"cos{distance}" for distance in DISTANCES), "norm", "scale"]
    for column in columns + ["near", "mean", "far", "even"] * attends:
        table.add_column(column, justify="right", no_wrap=True)
    for depth in depths:
        row = [str(depth.block), str(depth.stride)]
        row += ["-" if value is None else f"{value:.2f}" for value in depth.similarity]
        for factors in (depth.layer_norms.values(), depth.scales.values()):
            row.append(f"{sum(factors) / len(factors):.3f}" if factors else "-")
        if apart := [value * (depth.frame_ms or 1) for value in depth.distance_frames]:
            even = depth.uniform_frames * (depth.frame_ms or 1)
            row += [f"{value:.{digits}f}" for value in (min(apart), sum(apart) / len(apart), max(apart), even)]
        table.add_row(*row)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("cosN: cosine of frames N apart; norm, scale: rms of LayerNorm weights and learned scales")
    if attends:
        console.print(f"near, mean, far: distance of the heads in {unit}; even: with all frames weighted alike")
    else:
        console.print("no attention distances: this backbone has no attention")
