"""Arms against a baseline: quality, differences paired by seed, fairness, convergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

from router_lab.errors import UserError
from router_lab.report.arms import Arm, group
from router_lab.report.collect import Collection, LeftOut
from router_lab.report.curves import AXES, FALL, band, fall_at_the_end
from router_lab.report.statistics import Difference, Estimate, estimate, holm, paired_difference
from router_lab.report.text import listing

QUALITY = "quality.bits_per_byte"
DENSE = "mlp"
NOT_CAUSAL, NOT_MATCHED, NOT_CONVERGED = "†", "≠", "↘"
TOLERANCE = 0.01
# What must agree for two arms to be matched, by `match=`.
MEASURES = {
    "active_params": ("params.active", "flops_per_token"),
    "flops": ("flops_per_token",),
    "total_params": ("params.total",),
}
SECTIONS = ("routing.mean", "probe", "quality")  # of result.json, whose names need no path
MEASURE_NAMES = {
    "params.active": "active parameters",
    "params.total": "parameters",
    "flops_per_token": "FLOPs per token",
    "train.tokens": "tokens seen",
    "train.flops": "training FLOPs",
    "train.seconds": "training time",
}


@dataclass(frozen=True)
class Row:
    """An arm in the comparison; `difference` is to the baseline, None for the baseline itself.

    `unmatched`: measure and by what share it differs from the baseline's, where by more than 1%.
    `falling`: share of its final value by which quality still fell in the last fifth of the run.
    `at_equal`: bits per byte at the budget that all arms reached (see Comparison.equal_budget).
    """

    arm: Arm
    order: int  # of the grid
    quality: Estimate
    difference: Difference | None
    unmatched: tuple[tuple[str, float], ...]
    falling: float | None
    at_equal: float | None

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def converged(self) -> bool:
        return self.falling is None or self.falling <= FALL


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that tables, figures and the page show. `rows` has the best arm first."""

    dirs: tuple[Path, ...]
    rows: tuple[Row, ...]
    baseline: Row
    baseline_why: str
    by: str
    equal_budget: float | None
    left_out: tuple[LeftOut, ...]
    more: tuple[str, ...] = ()  # dotted paths of numbers that were asked for as columns

    @property
    def in_grid_order(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.order)

    @property
    def runs(self) -> int:
        return sum(len(row.arm.runs) for row in self.rows)

    @property
    def seeds(self) -> tuple[int, int]:
        """The fewest and the most seeds of an arm."""
        counts = [len(row.arm.runs) for row in self.rows]
        return min(counts), max(counts)

    @property
    def none_converged(self) -> bool:
        return not any(row.converged for row in self.rows)

    def marks(self, row: Row) -> str:
        """Signs behind the arm's name; what holds for every arm is said once, below the table."""
        signs = ""
        if not row.arm.causal:
            signs += NOT_CAUSAL
        if row.unmatched:
            signs += NOT_MATCHED
        if not row.converged and not self.none_converged:
            signs += NOT_CONVERGED
        return signs

    @cached_property
    def level(self) -> dict[str, dict[int, float]]:
        """Bits per byte by arm and seed, without the luck that a seed brings to all arms alike.

        A seed's luck is the mean of its runs less the mean of all (Cousineau 2005); it is taken off
        where all arms have the same seeds, so no arm's mean moves. Otherwise nothing is taken off.
        """
        values = {row.name: row.arm.values(QUALITY) for row in self.rows}
        seeds = [set(found) for found in values.values()]
        if any(found != seeds[0] for found in seeds):
            return values
        luck = {s: sum(found[s] for found in values.values()) / len(values) for s in seeds[0]}
        usual = sum(luck.values()) / len(luck)
        return {
            name: {seed: value - luck[seed] + usual for seed, value in found.items()}
            for name, found in values.items()
        }

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Difference]:
        """The difference first − second of any two arms that share a seed, better arm first.

        Corrected over all pairs: whichever two are picked after looking, the error stays at 5%.
        """
        found = {}
        values = {row.name: row.arm.values(QUALITY) for row in self.rows}
        for first, second in combinations(values, 2):
            difference = paired_difference(values[first], values[second])
            if difference is not None:
                found[first, second] = difference
        corrected = holm([difference.p for difference in found.values()])
        return {
            pair: replace(difference, p_holm=p)
            for (pair, difference), p in zip(found.items(), corrected, strict=True)
        }


def compare_arms(
    collection: Collection,
    baseline: str | None = None,
    by: str = "tokens",
    columns: Sequence[str] = (),
) -> Comparison:
    """Compare all arms with the baseline.

    Args:
        columns: more numbers for the tables: dotted paths of result.json, or names in
            `routing.mean`, `probe` or `quality`.

    Raises UserError when nothing has finished, or for an unknown baseline, budget or column.
    """
    if by not in AXES:
        raise UserError(f"--by {by} is unknown: use {listing(list(AXES), 9)}")
    arms, replaced = group(collection.runs, collection.left_out)
    left_out = (*collection.left_out, *replaced)
    if not arms:
        where = listing([str(folder) for folder in collection.dirs])
        states = listing(sorted({run.state for run in left_out})) if left_out else "none was begun"
        raise UserError(f"{where} holds no finished run ({states}): wait for one, or run the grid")
    base, why = _baseline(arms, baseline)
    differences = [
        None if arm is base else paired_difference(arm.values(QUALITY), base.values(QUALITY))
        for arm in arms
    ]
    corrected = holm([difference.p if difference else None for difference in differences])
    equal = _equal_budget(arms, by)
    rows = []
    for order, (arm, difference, p) in enumerate(zip(arms, differences, corrected, strict=True)):
        curve = band(arm, by)
        rows.append(
            Row(
                arm,
                order,
                estimate(list(arm.values(QUALITY).values())),
                difference and replace(difference, p_holm=p),
                tuple(_unmatched(arm, base)),
                fall_at_the_end(arm),
                curve.at(equal) if curve is not None and equal is not None else None,
            )
        )
    rows.sort(key=lambda row: row.quality.mean)
    base_row = next(row for row in rows if row.arm is base)
    more = tuple(_path(arms, name) for name in columns)
    return Comparison(collection.dirs, tuple(rows), base_row, why, by, equal, left_out, more)


def _path(arms: Sequence[Arm], name: str) -> str:
    """The dotted path of a column that was asked for."""
    paths = [name, *(f"{section}.{name}" for section in SECTIONS)]
    for path in paths:
        if any(arm.values(path) for arm in arms):
            return path
    known = {key for arm in arms for key in (arm.first.get("routing") or {}).get("mean") or {}}
    names = ", ".join(sorted(known)) or "no routing metric"
    raise UserError(f"--columns {name} is no number of these runs: they have {names}")


def _baseline(arms: Sequence[Arm], wanted: str | None) -> tuple[Arm, str]:
    if wanted is None:
        dense = [arm for arm in arms if arm.arm == DENSE]
        if dense:
            return dense[0], "the dense arm"
        return arms[0], "the first arm of the grid"
    found = [arm for arm in arms if arm.name == wanted] or [a for a in arms if a.arm == wanted]
    if len(found) == 1:
        return found[0], "as asked"
    if not found:
        names = listing([arm.name for arm in arms], 20)
        raise UserError(f"--baseline {wanted} is no arm with a finished run: there is {names}")
    names = listing([repr(arm.name) for arm in found], 20)
    raise UserError(f"--baseline {wanted} is the name of several arms: take one of {names}")


def _unmatched(arm: Arm, base: Arm) -> list[tuple[str, float]]:
    kind = (base.first.get("match") or {}).get("kind")
    budget = (base.first.get("budget") or {}).get("kind")
    measures = (*MEASURES.get(str(kind), MEASURES["active_params"]), f"train.{budget}")
    found = []
    for measure in measures:
        mine, its = arm.mean(measure), base.mean(measure)
        if mine is not None and its and abs(mine / its - 1.0) > TOLERANCE:
            found.append((MEASURE_NAMES[measure], mine / its - 1.0))
    return found


def _equal_budget(arms: Sequence[Arm], by: str) -> float | None:
    """The largest budget that all arms reached, where they spent different ones; else None."""
    bands = [found for arm in arms if (found := band(arm, by)) is not None]
    if len(bands) < max(2, len(arms)):
        return None
    ends = [float(found.x[-1]) for found in bands]
    least = min(ends)
    if max(ends) <= least * (1.0 + TOLERANCE) or least < max(float(b.x[0]) for b in bands):
        return None
    return least
