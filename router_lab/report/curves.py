"""Learning curves and expert loads of an arm, over its seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_lab.report.arms import Arm
from router_lab.runs.layers import in_order
from router_lab.runs.state import number

AXES = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds"}
POINTS = 60
TAIL = 0.2  # the last fifth of a run …
FALL = 0.005  # … in which the bits per byte of a converged arm fall by less than this share


@dataclass(frozen=True)
class Band:
    """A curve over `n` seeds: their mean, lowest and highest value at each x (ascending)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int

    def at(self, x: float) -> float:
        return float(np.interp(x, self.x, self.mean))


def band(
    arm: Arm, by: str = "tokens", of: str = "bits_per_byte", less: Arm | None = None
) -> Band | None:
    """The curve of `of` against `by` over the range that all seeds cover; None without a curve.

    With `less`, the difference arm − less, paired by seed. The recorded points are used if the runs
    share them (tokens); otherwise (seconds) the curves are interpolated at 60 points.
    """
    curves, base = _curves(arm, by, of), _curves(less, by, of) if less else None
    if base is not None:
        curves = {seed: curve for seed, curve in curves.items() if seed in base}
    x = _common_x([*curves.values(), *(base[seed] for seed in curves if base)])
    if not len(x):
        return None
    y = np.stack([np.interp(x, *curve.T) for curve in curves.values()])
    if base is not None:
        y -= np.stack([np.interp(x, *base[seed].T) for seed in curves])
    return Band(x, y.mean(0), y.min(0), y.max(0), len(y))


def _curves(arm: Arm, by: str, of: str) -> dict[int, np.ndarray]:
    curves = {run.seed: _curve(run.result, by, of) for run in arm.runs}
    return {seed: curve for seed, curve in curves.items() if len(curve) > 1}


def _common_x(curves: list[np.ndarray]) -> np.ndarray:
    """Ascending points that every curve covers; empty if there are none."""
    if not curves:
        return np.empty(0)
    x = curves[0][:, 0]
    if not all(len(c) == len(x) and np.allclose(c[:, 0], x, rtol=1e-6) for c in curves):
        start, end = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
        x = np.linspace(start, end, POINTS) if start < end else np.empty(0)
    if len(x) > 4 * POINTS:  # one point per pixel is enough
        x = np.interp(np.linspace(0, len(x) - 1, 4 * POINTS), np.arange(len(x)), x)
    return x


def _curve(result: dict[str, object], by: str, of: str) -> np.ndarray:
    points = result.get("curve")
    pairs = [
        (x, y)
        for point in (points if isinstance(points, list) else [])
        if (x := number(point, by)) is not None and (y := number(point, of)) is not None
    ]
    return np.array(sorted(dict(pairs).items()), dtype=float).reshape(-1, 2)


def fall_at_the_end(arm: Arm) -> float | None:
    """How far bits per byte fell in the last fifth of the tokens, as a share of the final value."""
    curve = band(arm)
    if curve is None or len(curve.x) < 3:
        return None
    final = float(curve.mean[-1])
    return (curve.at((1.0 - TAIL) * float(curve.x[-1])) - final) / final if final else None


def loads(arm: Arm) -> tuple[list[str], np.ndarray] | None:
    """Layer names and the load of each expert as a multiple of the balanced load, (L, E).

    Expert numbers do not carry over from seed to seed, so the experts of each layer and run are
    sorted, the busiest first, before averaging over seeds. NaN where a layer has fewer experts.
    """
    by_layer: dict[str, list[np.ndarray]] = {}
    for run in arm.runs:
        for layer, ratio in layer_loads(run.result).items():
            by_layer.setdefault(layer, []).append(np.sort(ratio)[::-1])
    if not by_layer:
        return None
    names = in_order(by_layer)
    table = np.full((len(names), max(len(by_layer[name][0]) for name in names)), np.nan)
    for row, name in enumerate(names):
        same = [ratio for ratio in by_layer[name] if len(ratio) == len(by_layer[name][0])]
        table[row, : len(same[0])] = np.mean(same, axis=0)
    return names, table


def layer_loads(result: dict[str, object]) -> dict[str, np.ndarray]:
    """The load of each layer's experts [E] as a multiple of the balanced load, in their order."""
    routing = result.get("routing")
    layers = routing.get("layers") if isinstance(routing, dict) else None
    loads_by_layer = {}
    for name, layer in (layers or {}).items():
        load = np.asarray(layer.get("load") or [], dtype=float)
        if load.size and np.isfinite(load).all() and load.sum() > 0:
            loads_by_layer[str(name)] = load / load.mean()
    return loads_by_layer
