"""Arms against a baseline: quality, differences paired by seed, fairness, convergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import fmean

from router_lab.errors import UserError
from router_lab.report.arms import Arm, group, on_common_seeds
from router_lab.report.collect import Collection, LeftOut
from router_lab.report.curves import AXES, FALL, band, fall_at_the_end
from router_lab.report.fairness import TOLERANCE, differences_in_budget
from router_lab.report.statistics import (
    Difference,
    Estimate,
    corrected,
    estimate,
    paired_difference,
)
from router_lab.runs.text import listing

QUALITY = "quality.bits_per_byte"
DENSE = "mlp"
LOOKS_AHEAD, NOT_MATCHED, NOT_CONVERGED = "†", "≠", "↘"
SECTIONS = ("routing.mean", "probe", "quality", "train")
"""Sections of result.json whose numbers can be asked for by name alone."""


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
    `pairs`: the difference first − second of any two ranked arms, the better arm first. All tests
    of the page are these: one family, corrected over all pairs, so any two arms may be picked
    after looking at the results.
    """

    dirs: tuple[Path, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    pairs: Mapping[tuple[str, str], Difference]
    baseline: Row
    baseline_why: str
    by: str
    equal_budget: float | None
    left_out: tuple[LeftOut, ...]
    more: tuple[str, ...] = ()  # dotted paths of numbers that were asked for as columns

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
    if not arms:
        where = listing([str(folder) for folder in collection.dirs])
        states = sorted({run.state for run in collection.left_out}) or ["no run has started"]
        raise UserError(
            f"{where} contains no finished run ({listing(states)}): wait for one, or run the grid"
        )
    arms, ranked, seeds, unused = on_common_seeds(arms)
    left_out = (*collection.left_out, *replaced, *unused)
    base, why = _baseline(arms, baseline)
    pairs = _pairs([arm for arm in arms if arm.name in ranked])
    equal = _equal_budget(arms, by)
    rows = []
    for order, arm in enumerate(arms):
        curve = band(arm, by)
        rows.append(
            Row(
                arm,
                order,
                arm.name in ranked,
                estimate(list(arm.values(QUALITY).values())),
                _to_baseline(pairs, arm.name, base.name),
                tuple(differences_in_budget(arm, base, arms)),
                fall_at_the_end(arm),
                curve.at(equal) if curve is not None and equal is not None else None,
            )
        )
    rows.sort(key=lambda row: (not row.ranked, row.quality.mean))
    base_row = next(row for row in rows if row.arm is base)
    more = tuple(_path(arms, name) for name in columns)
    return Comparison(
        collection.dirs, tuple(rows), seeds, pairs, base_row, why, by, equal, left_out, more
    )


def _pairs(arms: Sequence[Arm]) -> dict[tuple[str, str], Difference]:
    """The difference of every two arms, the better one first, corrected over all pairs."""
    values = {arm.name: arm.values(QUALITY) for arm in arms}
    names = sorted(values, key=lambda name: fmean(values[name].values()))
    differences = {
        pair: difference
        for pair in combinations(names, 2)
        if (difference := paired_difference(values[pair[0]], values[pair[1]])) is not None
    }
    return dict(zip(differences, corrected([*differences.values()]), strict=True))


def _to_baseline(
    pairs: Mapping[tuple[str, str], Difference], arm: str, base: str
) -> Difference | None:
    if (arm, base) in pairs:
        return pairs[arm, base]
    difference = pairs.get((base, arm))
    return difference and replace(difference, mean=-difference.mean)


def _path(arms: Sequence[Arm], name: str) -> str:
    """The dotted path of a column that was asked for."""
    paths = [name, *(f"{section}.{name}" for section in SECTIONS)]
    for path in paths:
        if any(arm.values(path) for arm in arms):
            return path
    metrics = {key for arm in arms for key in (arm.first.get("routing") or {}).get("mean") or {}}
    names = ", ".join(sorted(metrics)) or "no routing metric"
    raise UserError(f"--columns {name} is no number of these runs: they have {names}")


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
