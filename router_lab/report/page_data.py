"""The numbers behind the interactive figures of the page: aggregated per arm, rounded, small."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from router_lab.report.arms import Arm
from router_lab.report.comparison import Comparison, Row
from router_lab.report.curves import AXES, Band, band, layer_loads, loads
from router_lab.report.scatter import Point, pareto_front, point
from router_lab.report.style import in_focus, styles

MOST_POINTS = 80  # of a curve: enough for a screen, and hundreds of arms stay light
MOST_CELLS = 4096  # of a heatmap


def page_data(comparison: Comparison) -> dict[str, Any]:
    """What the page's scripts draw; plain JSON, null if unknown."""
    focus = {row.name for row in in_focus(comparison)}
    points = [(p.x, p.y) for row in comparison.rows if (p := point(comparison, row)) is not None]
    return {
        "baseline": comparison.baseline.name,
        "bits": comparison.bits,
        "by": comparison.by,
        "axes": AXES,
        "several_seeds": comparison.several_seeds,
        "front": [_all_rounded(corner, 6) for corner in pareto_front(points)],
        "arms": [_arm_data(comparison, row, row.name in focus) for row in comparison.in_grid_order],
    }


def _arm_data(comparison: Comparison, row: Row, in_focus_: bool) -> dict[str, Any]:
    look, base = styles(comparison)[row.name], comparison.baseline
    return {
        "name": row.name,
        "colour": look.index,
        "dash": list(look.dash),
        "marker": look.marker,
        "focus": in_focus_,
        "bits": rounded(row.quality.mean),
        "scatter": _scatter_data(point(comparison, row)),
        "curves": {by: _curve_data(row.arm, by, None if row is base else base.arm) for by in AXES},
        "loads": _load_data(row.arm),
    }


def _curve_data(arm: Arm, by: str, base: Arm | None) -> dict[str, Any]:
    curves = {
        "bits_per_byte": band(arm, by),
        "difference": band(arm, by, less=base) if base else None,
        "max_vio": band(arm, by, "max_vio"),
    }
    return {name: _band_data(curve) for name, curve in curves.items() if curve is not None}


def _band_data(curve: Band) -> dict[str, Any]:
    places = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int))
    names = ("x", "mean", "low", "high") if curve.n > 1 else ("x", "mean")
    return {name: _all_rounded(getattr(curve, name)[places]) for name in names}


def _scatter_data(arm: Point | None) -> dict[str, Any] | None:
    if arm is None:
        return None
    return {
        "x": rounded(arm.x),
        "y": rounded(arm.y),
        "halves": arm.halves and _all_rounded(arm.halves, 6),
        "seeds": [_all_rounded(seed, 6) for seed in arm.seeds],
    }


def _load_data(arm: Arm) -> dict[str, Any] | None:
    named_loads = loads(arm)
    if named_loads is None or named_loads[1].size > MOST_CELLS:
        return None
    names, table = named_loads
    first = layer_loads(arm.first)
    return {
        "layers": names,
        "sorted": [_all_rounded(line, 3) for line in table],
        "numbered": [_all_rounded(first.get(name, ()), 3) for name in names],
        "seed": arm.runs[0].seed,
    }


def rounded(value: float | None, digits: int = 6) -> float | None:
    """Rounded to significant digits; None for what JSON cannot express."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _all_rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    return [rounded(float(value), digits) for value in values]
