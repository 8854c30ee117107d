"""Plots of an analysis by depth, as PNG bytes. Colours are those of Okabe and Ito, told apart by the color-blind."""

import importlib.util
import io
from typing import TYPE_CHECKING

from seqformer.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from seqformer.analyze import Depth

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C8C00")
MARKERS = "osD^vPX*"
GREY = "#6E6E6E"


def require_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib; install it: pip install 'seqformer[report]'")


def draw_similarity(depths: "list[Depth]", title: str) -> bytes:
    """Cosine similarity of neighbouring frames by block, a line for each distance."""
    figure, (axes,) = _figure(1, f"How alike neighbouring frames are\n{title}")
    for number in range(len(depths[0].similarity)):
        values = [float("nan") if d.similarity[number] is None else d.similarity[number] for d in depths]
        _line(axes, number, [d.block for d in depths], values, f"{number + 1} frame{'s' * (number > 0)} apart")
    axes.set_ylabel("mean cosine similarity")
    axes.set_ylim(top=1.04)
    _finish(figure, depths)
    return _png(figure)


def draw_scales(depths: "list[Depth]", title: str) -> bytes:
    """Size of the learned factors of LayerNorms and, beside it, of learned scales, by block."""
    kinds = {"LayerNorm weights": [d.layer_norms for d in depths], "learned scales": [d.scales for d in depths]}
    kinds = {kind: found for kind, found in kinds.items() if any(found)}
    figure, panels = _figure(len(kinds), f"How large the learned factors are (1 before training)\n{title}")
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        axes.axhline(1.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for number, name in enumerate(dict.fromkeys(name for factors in found for name in factors)):
            values = [factors.get(name, float("nan")) for factors in found]
            _line(axes, number, [d.block for d in depths], values, name)
        axes.set_title(kind, fontsize=10)
    panels[0].set_ylabel("root mean square")
    _finish(figure, depths, columns=2)  # their names are long
    return _png(figure)


def draw_attention(depths: "list[Depth]", title: str) -> bytes:
    """Mean attention distance: a dot for each head, their mean, and what attending to all frames alike would give."""
    timed = depths[0].frame_ms is not None
    figure, (axes,) = _figure(1, f"How far attention looks\n{title}")
    seen = [depth for depth in depths if depth.distance_frames]
    blocks, units = [d.block for d in seen], [d.frame_ms or 1 for d in seen]
    dots = [(d.block, unit * value) for d, unit in zip(seen, units, strict=True) for value in d.distance_frames]
    axes.scatter(*zip(*dots, strict=True), s=26, color=COLORS[5], edgecolor="white", linewidth=0.6, label="one head")
    means = [u * sum(d.distance_frames) / len(d.distance_frames) for d, u in zip(seen, units, strict=True)]
    _line(axes, 0, blocks, means, "mean of the heads")
    uniform = [u * d.uniform_frames for d, u in zip(seen, units, strict=True)]
    axes.plot(blocks, uniform, color=GREY, linestyle=(0, (4, 3)), label="all frames weighted alike")
    axes.set_ylabel(f"mean distance, {'ms' if timed else 'frames of the block'}")
    axes.set_ylim(bottom=0)
    _finish(figure, depths)
    return _png(figure)


def _figure(panels: int, title: str) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure  # and not pyplot, which keeps figures and asks for a display

    figure = Figure(figsize=(7.5 if panels == 1 else 11, 4.6), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def _line(axes: "Axes", number: int, x: list, y: list, label: str) -> None:
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    axes.plot(x, y, color=color, marker=marker, markersize=5, linewidth=1.6, label=label)


def _finish(figure: "Figure", depths: "list[Depth]", columns: int = 3) -> None:
    """Axis of blocks, legend below, and a band behind the blocks of a lower frame rate."""
    fastest = min(depth.stride for depth in depths)
    for axes in figure.axes:
        axes.set_xlabel("block")
        axes.set_xticks([d.block for d in depths if len(depths) <= 24 or d.block % 2 == 0])
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        label = "lower frame rate"
        for depth in depths:
            if depth.stride > fastest:
                slow = f" ({depth.frame_ms:g} ms)" if depth.frame_ms else ""
                axes.axvspan(depth.block - 0.5, depth.block + 0.5, color="#F1EEE4", linewidth=0, zorder=0,
                             label=label and label + slow)  # fmt: skip
                label = None
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, fontsize=8.5, frameon=False)


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
