"""Arms against a baseline: quality, differences paired by seed, fairness, convergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import fmean

from router_lab.errors import UserError
from router_lab.report.arms import Arm, group, on_common_seeds
from router_lab.report.collect import Collection, LeftOut
from router_lab.report.curves import AXES, FALL, band, fall_at_the_end
from router_lab.report.fairness import TOLERANCE, differences_in_budget
from router_lab.report.metric import (
    DOMAIN_NMI,
    MARGIN,
    MAX_VIO,
    QUALITY,
    Metric,
    compare_metric,
    margins,
    path_of,
)
from router_lab.report.statistics import Difference, Estimate
from router_lab.runs.text import listing

DENSE = "mlp"
LOOKS_AHEAD, NOT_MATCHED, NOT_CONVERGED = "†", "≠", "↘"
ORDERS = {
    "quality": "Best first",
    "grid": "In the order of the grid",
    "name": "By name",
}
"""Orders of the arms in tables."""


@dataclass(frozen=True)
class Row:
    """An arm in the comparison.

    `ranked`: it has the seeds on which the arms are compared; if not, it comes last.
    `difference`: arm − baseline in bits per byte; None for the baseline and for unranked arms.
    `unmatched`: what sets its budget or its evaluation apart from the baseline's, and by how much.
    `falling`: share of its final value by which quality still fell in the last fifth of the run.
    `at_equal`: bits per byte at the budget that all arms reached (see Comparison.equal_budget).
    """

    arm: Arm
    order: int  # of the grid
    ranked: bool
    quality: Estimate
    difference: Difference | None
    unmatched: tuple[tuple[str, str], ...]
    falling: float | None
    at_equal: float | None

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def mismatch(self) -> str:
        """`unmatched` in words: `active parameters +8.0% and FLOPs per token +8.1%`."""
        return listing([f"{what} {by}" for what, by in self.unmatched])

    @property
    def converged(self) -> bool:
        return self.falling is None or self.falling <= FALL


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that tables, figures and the page show.

    `rows`: the ranked arms, best first, then the others.
    `seeds`: those that all ranked arms have. Every number of a ranked arm is over these seeds.
    `metrics`: quality, balance, specialisation and those asked for, by path in result.json. The
    tests of a metric are one family of their own.
    `asked`: paths of the metrics that have a table of their own.
    `more`: paths of numbers that were asked for as columns.
    `only`, `drop`: names of the columns to show (all if empty) and to leave out.
    """

    dirs: tuple[Path, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    baseline: Row
    baseline_why: str
    by: str
    equal_budget: float | None
    left_out: tuple[LeftOut, ...]
    asked: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    order: str = "quality"
    title: str = ""

    @property
    def pairs(self) -> Mapping[tuple[str, str], Difference]:
        """The differences in bits per byte of any two ranked arms, the better arm first."""
        return self.metrics[QUALITY].pairs

    @property
    def margin(self) -> float:
        """Bits per byte within which two arms are equivalent."""
        return self.metrics[QUALITY].margin or MARGIN

    @property
    def in_order(self) -> list[Row]:
        """The rows in the order that was asked for."""
        if self.order == "quality":
            return list(self.rows)
        return sorted(self.rows, key=lambda row: row.order if self.order == "grid" else row.name)

    @property
    def name(self) -> str:
        """The title that was asked for, or else the grids."""
        grids = {run.grid for row in self.rows for run in row.arm.runs} - {""}
        return self.title or ", ".join(sorted(grids)) or self.dirs[0].name

    @property
    def bits(self) -> str:
        """The unit of quality: `bits per byte`, or `bits per token` where bytes are unknown."""
        return f"bits per {(self.baseline.arm.first.get('data') or {}).get('unit', 'byte')}"

    @property
    def in_grid_order(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.order)

    @property
    def runs(self) -> int:
        return sum(len(row.arm.runs) for row in self.rows)

    @property
    def ranked(self) -> list[Row]:
        return [row for row in self.rows if row.ranked]

    @property
    def several_seeds(self) -> bool:
        return any(row.quality.n > 1 for row in self.rows)

    @property
    def none_converged(self) -> bool:
        return not any(row.converged for row in self.rows)

    def marks(self, row: Row) -> str:
        """Signs after the arm's name; a note below the table says what holds for every arm."""
        signs = ""
        if row.arm.sees_the_future:
            signs += LOOKS_AHEAD
        if row.unmatched:
            signs += NOT_MATCHED
        if not row.converged and not self.none_converged:
            signs += NOT_CONVERGED
        return signs

    @cached_property
    def without_seed_effect(self) -> dict[str, dict[int, float]]:
        """Bits per byte by arm and seed, without the part of a seed that is common to all arms.

        Subtracts the mean over the arms of a seed, less the grand mean (Cousineau 2005). With J
        arms this also removes 1/J of an arm's own variance, so the rest is scaled by √(J / (J − 1))
        around the arm's mean (Morey 2008). No mean moves; arms that are not ranked keep theirs.
        """
        values = {row.name: row.arm.values(QUALITY) for row in self.rows}
        ranked = [values[row.name] for row in self.ranked]
        if len(ranked) < 2:
            return values
        by_seed = {seed: fmean(arm[seed] for arm in ranked) for seed in self.seeds}
        spread = sqrt(len(ranked) / (len(ranked) - 1))
        grand_mean = fmean(by_seed.values())
        for row in self.ranked:
            mean = row.quality.mean
            values[row.name] = {
                seed: mean + spread * (value - by_seed[seed] + grand_mean - mean)
                for seed, value in values[row.name].items()
            }
        return values


def compare_arms(
    collection: Collection,
    baseline: str | None = None,
    by: str = "tokens",
    columns: Sequence[str] = (),
    metrics: Sequence[str] = (),
    margin: str = str(MARGIN),
    only: Sequence[str] = (),
    drop: Sequence[str] = (),
    order: str = "quality",
    title: str = "",
) -> Comparison:
    """Compare all arms with the baseline.

    Args:
        columns: more numbers for the tables: dotted paths of result.json, or names in one of
            `metric.SECTIONS`.
        metrics: numbers, named alike, that are compared with intervals and tests.
        margin: see `metric.margins`.
        only, drop: columns to show alone, and to leave out.
        order: of the arms, a key of ORDERS.
        title: in place of the grid's name.

    Raises UserError if nothing has finished, or for an unknown name or margin.
    """
    for option, value, choices in (("--by", by, [*AXES]), ("--order", order, [*ORDERS])):
        if value not in choices:
            raise UserError(f"{option} {value} is unknown: use {listing(choices, 9)}")
    within = margins(margin)
    arms, replaced = group(collection.runs, collection.left_out)
    if not arms:
        where = listing([str(folder) for folder in collection.dirs])
        states = sorted({run.state for run in collection.left_out}) or ["no run has started"]
        raise UserError(
            f"{where} contains no finished run ({listing(states)}): wait for one, or run the grid"
        )
    arms, ranked, seeds, unused = on_common_seeds(arms)
    base, why = _baseline(arms, baseline)
    asked = tuple(path_of(arms, name, "--metric") for name in metrics)
    compared = {
        path: compare_metric(
            path, arms, ranked, base.name, within.pop(path.rpartition(".")[2], None)
        )
        for path in dict.fromkeys((QUALITY, MAX_VIO, DOMAIN_NMI, *asked))
        if any(arm.values(path) for arm in arms)
    }
    if within:
        raise UserError(f"--margin is for {listing([*within])}, not compared: add it to --metric")
    quality, equal = compared[QUALITY], _equal_budget(arms, by)
    rows = []
    for place, arm in enumerate(arms):
        curve = band(arm, by)
        rows.append(
            Row(
                arm,
                place,
                arm.name in ranked,
                quality.estimates[arm.name],
                quality.to_reference(arm.name),
                tuple(differences_in_budget(arm, base, arms)),
                fall_at_the_end(arm),
                curve.at(equal) if curve is not None and equal is not None else None,
            )
        )
    rows.sort(key=lambda row: (not row.ranked, row.quality.mean))
    return Comparison(
        dirs=collection.dirs,
        rows=tuple(rows),
        seeds=seeds,
        metrics=compared,
        baseline=next(row for row in rows if row.arm is base),
        baseline_why=why,
        by=by,
        equal_budget=equal,
        left_out=(*collection.left_out, *replaced, *unused),
        asked=asked,
        more=tuple(path_of(arms, name, "--columns") for name in columns),
        only=tuple(only),
        drop=tuple(drop),
        order=order,
        title=title,
    )


def _baseline(arms: Sequence[Arm], wanted: str | None) -> tuple[Arm, str]:
    if wanted is None:
        dense = [arm for arm in arms if arm.arm == DENSE]
        if dense:
            return dense[0], "the dense arm"
        return arms[0], "the first arm of the grid"
    matching = [arm for arm in arms if arm.name == wanted] or [a for a in arms if a.arm == wanted]
    if len(matching) == 1:
        return matching[0], "as asked"
    if not matching:
        names = listing([arm.name for arm in arms], 20)
        raise UserError(f"--baseline {wanted} is no arm with a finished run: there is {names}")
    names = listing([repr(arm.name) for arm in matching], 20)
    raise UserError(f"--baseline {wanted} is the name of several arms: take one of {names}")


def _equal_budget(arms: Sequence[Arm], by: str) -> float | None:
    """The largest budget that all arms reached, where they spent different ones; else None."""
    bands = [curve for arm in arms if (curve := band(arm, by)) is not None]
    if len(bands) < max(2, len(arms)):
        return None
    ends = [float(curve.x[-1]) for curve in bands]
    least = min(ends)
    if max(ends) <= least * (1.0 + TOLERANCE) or least < max(float(b.x[0]) for b in bands):
        return None
    return least
