"""The comparison as static figures: PNG, SVG, PDF. The page draws its own from the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from router_lab.report.comparison import Comparison
from router_lab.report.curves import AXES, Band, band
from router_lab.report.scatter import pareto_front, point
from router_lab.report.style import darker, in_focus, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = ("png", "svg", "pdf")
NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata with which the same runs give the same file."""
UNNAMED = "#c8c8c8"
LOOK: Any = {
    "font.size": 9,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "router_lab",
    "savefig.dpi": 160,
}
ROOT = (lambda x: np.sqrt(np.clip(x, 0, None)), np.square)
TICKS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0)


def write_figures(
    comparison: Comparison, out: Path, size: tuple[float, float] | None = None
) -> list[str]:
    """Draws every figure that has data; returns their names, without extension.

    A figure without data is removed, so that none is stale.

    Args:
        size: width and height in inches; None for each figure's default.
    """
    import matplotlib

    matplotlib.use("Agg")
    drawn = {"quality_imbalance": quality_imbalance, "curves": curves, "balance": balance}
    written = []
    with matplotlib.rc_context(LOOK):
        for name, draw in drawn.items():
            figure = draw(comparison)
            paths = {ending: out / f"{name}.{ending}" for ending in ENDINGS}
            if figure is None:
                for path in paths.values():
                    path.unlink(missing_ok=True)
                continue
            if size:
                figure.set_size_inches(size)
            if comparison.title:
                figure.suptitle(comparison.title, x=0.01, ha="left")
            for ending, path in paths.items():
                figure.savefig(path, metadata=NO_DATE.get(ending))
            written.append(name)
    return written


def quality_imbalance(comparison: Comparison) -> Figure | None:
    """Bits per byte against MaxVio; lower left is better. None without routed arms.

    An arm's seeds are dots, its mean is a marker, from three seeds on with 95% intervals.
    """
    look, focus = styles(comparison), {row.name for row in in_focus(comparison)}
    points = {row.name: arm for row in comparison.rows if (arm := point(comparison, row))}
    if not points:
        return None
    figure, (axes,) = _figure(1)
    front = pareto_front([(arm.x, arm.y) for arm in points.values()])
    axes.plot(*zip(*front, strict=True), color="#9a9a9a", lw=1, ls=":", drawstyle="steps-post")
    for name, arm in points.items():
        colour = look[name].colour if name in focus else UNNAMED
        if arm.halves and name in focus:
            across, up = arm.halves
            left = [[min(across, arm.x)], [across]]
            axes.errorbar(arm.x, arm.y, up, left, color=colour, lw=1.2, alpha=0.6)
        seeds = zip(*arm.seeds, strict=True)
        axes.plot(*seeds, ".", ms=5, color=colour, alpha=0.5, mew=0, clip_on=False)
        label = name if name in focus else None
        axes.plot(
            arm.x, arm.y, look[name].marker, color=colour, label=label,
            ms=7.5, mec="white", mew=0.8, zorder=5, clip_on=False,
        )  # fmt: skip
    ends = {row.name: row.quality.mean for row in comparison.rows if row.name in focus}
    for name in ends.keys() - points.keys():
        axes.axhline(ends[name], color=look[name].colour, lw=1.2, zorder=1, label=name)
    _square_root(axes, max(arm.x + (arm.halves or (0.0,))[0] for arm in points.values()), "x")
    axes.set_xlabel("MaxVio on the validation text (0 is balanced; square-root scale)")
    axes.set_ylabel(comparison.bits)
    axes.set_title("Quality against balance (lower left is better)")
    return _named(figure, axes, comparison, ends)


def curves(comparison: Comparison) -> Figure | None:
    """Learning curves, and next to them their differences from the baseline, paired by seed."""
    base, by = comparison.baseline, comparison.by
    bands = _bands(comparison)
    if not bands:
        return None
    differences = {
        row.name: curve
        for row in comparison.in_grid_order
        if row is not base and (curve := band(row.arm, by, less=base.arm)) is not None
    }
    figure, axes = _figure(2 if differences else 1)
    notes = ["band: lowest to highest seed"] * comparison.several_seeds
    if others := sum(row.name in bands for row in comparison.rows) - len(in_focus(comparison)):
        notes.append(f"grey: {others} other arms")
    axes[0].set_title("Learning curves" + (f" ({'; '.join(notes)})" if notes else ""))
    axes[0].set_ylabel(f"{comparison.bits} on the validation text")
    ends = _lines(axes[0], comparison, bands)
    if differences:
        right = axes[1]
        ends = _lines(right, comparison, differences) | {base.name: 0.0}
        right.axhline(0, color=styles(comparison)[base.name].colour, lw=1.6, label=base.name)
        paired = ", paired by seed" if comparison.several_seeds else ""
        right.set_title(f"Difference from {base.name}{paired}")
        right.set_ylabel(comparison.bits)
        low, high = right.get_ylim()
        right.set_ylim(min(low, -0.05 * (high - low)), max(high, 0.05 * (high - low)))
    return _named(figure, axes[-1], comparison, ends)


def balance(comparison: Comparison) -> Figure | None:
    """MaxVio over the course of training. None without routed arms."""
    bands = _bands(comparison, "max_vio")
    if not bands:
        return None
    figure, (axes,) = _figure(1)
    ends = _lines(axes, comparison, bands)
    _square_root(axes, max(float(curve.high.max()) for curve in bands.values()), "y")
    axes.set_ylabel("MaxVio (0 is balanced; square-root scale)")
    spread = " (band: lowest to highest seed)" if comparison.several_seeds else ""
    axes.set_title(f"Balance over training{spread}")
    return _named(figure, axes, comparison, ends)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; it is registered nowhere, so nothing has to be closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5.5 * panels, 4.2), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _bands(comparison: Comparison, of: str = "bits_per_byte") -> dict[str, Band]:
    bands = {row.name: band(row.arm, comparison.by, of) for row in comparison.in_grid_order}
    return {name: curve for name, curve in bands.items() if curve is not None}


def _lines(axes: Axes, comparison: Comparison, bands: Mapping[str, Band]) -> dict[str, float]:
    """Draws a line per arm, in its colour if the figure names it; returns where these end."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    look, focus, ends = styles(comparison), {row.name for row in in_focus(comparison)}, {}
    for name, curve in bands.items():
        if name not in focus:
            axes.plot(curve.x, curve.mean, color=UNNAMED, lw=0.7, zorder=1)
            continue
        ends[name], colour = float(curve.mean[-1]), look[name].colour
        if curve.n > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.1, lw=0)
        dash = (0, look[name].dash or None)
        axes.plot(curve.x, curve.mean, color=colour, lw=1.6, ls=dash, zorder=3, label=name)
    axes.set_xlim(0, max(float(curve.x[-1]) for curve in bands.values()))
    axes.set_ylim(*_after_the_start(list(bands.values())))
    axes.set_xlabel(AXES[comparison.by])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return ends


def _after_the_start(bands: Sequence[Band]) -> tuple[float, float]:
    """Limits that leave out the steep start, where the arms look alike."""
    late = [curve.x >= 0.25 * curve.x[-1] for curve in bands]
    low = min(float(curve.low[part].min()) for curve, part in zip(bands, late, strict=True))
    high = max(float(curve.high[part].max()) for curve, part in zip(bands, late, strict=True))
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def _square_root(axes: Axes, largest: float, which: Literal["x", "y"]) -> None:
    """An axis from 0 that shows both 0.02 and 5; a logarithm could not show 0."""
    right = max(largest * 1.1, 0.02)
    ticks = [0.0]
    for tick in TICKS:
        if tick <= right and np.sqrt(tick) - np.sqrt(ticks[-1]) > 0.07 * np.sqrt(right):
            ticks.append(tick)
    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("function", functions=ROOT)
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    getattr(axes, f"set_{which}lim")(0, right)


def _named(
    figure: Figure, axes: Axes, comparison: Comparison, heights: Mapping[str, float]
) -> Figure:
    """The figure with its arms' names at the right, in the order of their heights there."""
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: -heights[names[i]])
    figure.legend(
        [handles[i] for i in order],
        [names[i] if len(names[i]) <= 30 else f"{names[i][:29]}…" for i in order],
        labelcolor=[darker(styles(comparison)[names[i]].colour) for i in order],
        loc="outside right upper",
    )
    return figure
