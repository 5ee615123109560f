"""What the figures share: one look, names written beside what they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from router_lab.report.labels import place, spread
from router_lab.report.style import Style, darker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, UNNAMED = "#222222", "#666666", "#c8c8c8"
NAME_SIZE = 8.5
LOOK: Any = {
    "font.size": 9,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.fonttype": "none",
    "svg.hashsalt": "router_lab",
    "savefig.dpi": 160,
}


def new_figure(
    width: float, height: float, panels: int = 1, names: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with panels side by side and room for the names at the right.

    It is registered nowhere, so nothing has to be closed. Margins are fixed: pixels are known
    before anything is drawn, and matplotlib's own layout engines take a second a figure.
    """
    from matplotlib.figure import Figure

    letters = max((len(shortened(name)) for name in names), default=0)
    right = 0.15 + (letters * 0.68 * NAME_SIZE / 72 + 0.25 if letters else 0.0)
    whole = width * panels + right
    figure = Figure(figsize=(whole, height))
    grid = figure.subplots(1, panels, squeeze=False)
    inside = width - 0.75  # the left margin of each panel has its axis label
    figure.subplots_adjust(
        left=0.7 / whole,
        right=1 - right / whole,
        bottom=0.52 / height,
        top=1 - 0.4 / height,
        wspace=0.75 / inside,
    )
    return figure, list(grid[0])


def shortened(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def square_root_axis(axes: Axes, largest: float, which: Literal["x", "y"] = "x") -> None:
    """An axis from 0 that shows both 0.02 and 5; a logarithm could not show 0."""
    scale: Any = {"functions": (lambda x: np.sqrt(np.clip(x, 0, None)), np.square)}
    right = max(largest * 1.1, 0.02)
    kept = [0.0]
    for tick in (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0):
        if tick <= right and np.sqrt(tick) - np.sqrt(kept[-1]) > 0.07 * np.sqrt(right):
            kept.append(tick)
    if which == "x":
        axes.set_xscale("function", **scale)
        axes.set_xticks(kept, [f"{tick:g}" for tick in kept])
        axes.set_xlim(0, right)
    else:
        axes.set_yscale("function", **scale)
        axes.set_yticks(kept, [f"{tick:g}" for tick in kept])
        axes.set_ylim(0, right)


def name_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    obstacles: Sequence[tuple[float, float]],
    look: Mapping[str, Style],
) -> None:
    """The name of each point beside it; `obstacles` (in data units) are kept free if possible."""
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
    texts = [
        axes.text(
            *xy, shortened(name), color=darker(look[name].colour), size=NAME_SIZE, weight="bold",
            zorder=6, bbox=ground, va="bottom",
        )
        for name, xy in points.items()
    ]  # fmt: skip
    boxes = [text.get_window_extent() for text in texts]
    pixels = [(float(x), float(y)) for x, y in axes.transData.transform(list(points.values()))]
    covered = [(float(x), float(y)) for x, y in axes.transData.transform(obstacles)]
    left, bottom, right, top = axes.get_window_extent().extents
    found = place(pixels, [(b.width, b.height) for b in boxes], (left, bottom, right, top), covered)
    for text, box in zip(texts, found, strict=True):
        x, y = axes.transData.inverted().transform(box[:2])
        text.set_position((x, y))


def name_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], look: Mapping[str, Style]
) -> None:
    """Names beside the right edge, joined to the ends of their lines, moved apart if they touch."""
    if not ends:
        return
    _, low, _, high = axes.get_window_extent().extents
    heights = [float(axes.transData.transform(end)[1]) for end in ends.values()]
    line = 1.3 * NAME_SIZE * axes.figure.dpi / 72
    for (name, end), height in zip(ends.items(), spread(heights, line, low, high), strict=True):
        axes.annotate(
            shortened(name),
            xy=end,
            xytext=(1.05, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            color=darker(look[name].colour),
            size=NAME_SIZE,
            weight="bold",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": look[name].colour, "lw": 0.7, "alpha": 0.7,
                "shrinkA": 2, "shrinkB": 1, "relpos": (0, 0.5),
            },
        )  # fmt: skip
