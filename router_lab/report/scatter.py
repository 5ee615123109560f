"""Quality against balance: the points that the page and the static figure draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_lab.report.comparison import Comparison, Row
from router_lab.report.metric import MAX_VIO
from router_lab.report.statistics import estimate


@dataclass(frozen=True)
class Point:
    """An arm: MaxVio `x`, bits per byte `y`, and the same of each seed, without seed effects.

    `halves`: half the widths of the 95% intervals of x and y; None for fewer than three seeds,
    whose intervals are wider than any figure.
    """

    x: float
    y: float
    seeds: list[tuple[float, float]]
    halves: tuple[float, float] | None


def point(comparison: Comparison, row: Row) -> Point | None:
    """None for an arm without a router."""
    vio, bits = row.arm.values(MAX_VIO), comparison.without_seed_effect[row.name]
    seeds = [(vio[seed], bits[seed]) for seed in sorted(vio.keys() & bits.keys())]
    if not seeds:
        return None
    across, up = (estimate(values) for values in zip(*seeds, strict=True))
    halves = (across.half or 0.0, up.half or 0.0) if len(seeds) >= 3 else None
    return Point(across.mean, row.quality.mean, seeds, halves)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point dominates, left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front
