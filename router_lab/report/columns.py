"""The columns of a comparison: quality and balance, cost, and one table per metric asked for.

Each table is narrow enough for a README. Columns that no run can fill are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import floor, log10
from typing import Literal, NamedTuple

from router_lab.errors import UserError
from router_lab.report.comparison import Comparison, Row
from router_lab.report.fairness import ACTIVE, FLOPS, Measure
from router_lab.report.metric import DOMAIN_NMI, MAX_VIO, QUALITY, Metric
from router_lab.report.statistics import MOST_SEEDS, seeds_to_decide
from router_lab.runs.text import (
    digits_for,
    duration,
    fixed,
    gibibytes,
    listing,
    p_value,
    percent,
    si,
    with_interval,
)

WORTH, COST = "worth", "cost"
Show = Callable[[float | None], str]
Best = Literal["low", "high", ""]


@dataclass(frozen=True)
class Column:
    """A column of the table called `table`.

    `name`: for `--only` and `--drop`. `cell`: what is shown; `value`: the sorting key. `best`: the
    better values. `metric`: that whose difference it shows. `strong`: whether a row differs
    significantly from the reference.
    """

    name: str
    title: str
    table: str
    cell: Callable[[Row], str]
    value: Callable[[Row], float | None]
    meaning: str
    best: Best = ""
    metric: Metric | None = None
    strong: Callable[[Row], bool] = lambda row: False


class Cell(NamedTuple):
    """`strong`: differs significantly from the reference; `best`: no ranked arm is better."""

    text: str
    strong: bool = False
    best: bool = False


class Table(NamedTuple):
    """`name`: WORTH, COST or a metric's; the first column has the arms."""

    name: str
    titles: list[str]
    rows: list[list[Cell]]


def columns(comparison: Comparison) -> list[Column]:
    """The columns to show that at least one arm can fill, the arm's name not among them.

    Raises UserError for a name in `only` or `drop` that is no column.
    """
    usual = {column.name: column for column in (*_quality(comparison), *_means(comparison))}
    for option, names in (("--only", comparison.only), ("--drop", comparison.drop)):
        for name in names:
            if name not in usual:
                there = listing([*usual], len(usual))
                raise UserError(f"{option} {name} is no column: there is {there}")
    chosen = [usual[name] for name in comparison.only or usual if name not in comparison.drop]
    for path in comparison.asked:
        chosen += _tested(comparison.metrics[path], comparison.metrics[path].name)
    return [c for c in chosen if any(c.value(row) is not None for row in comparison.rows)]


def _quality(comparison: Comparison) -> Iterator[Column]:
    seeds = "compared; `3 of 5` if 2 runs are left out"
    yield Column("seeds", "Seeds", WORTH, seeds_cell, lambda row: row.quality.n, seeds)
    quality, *tests = _tested(comparison.metrics[QUALITY], WORTH)
    bits = "quality on the validation text, mean over seeds; lower is better"
    yield replace(quality, title=comparison.bits.capitalize(), best="low", meaning=bits)
    yield from tests


def _tested(metric: Metric, table: str) -> Iterator[Column]:
    """A metric's mean and interval, the difference from the reference, its p, and the decision."""
    against, means = metric.reference, metric.estimates
    tests = {name: d for name in means if (d := metric.to_reference(name)) is not None}
    largest = max((abs(one.mean) for one in means.values()), default=0.0)
    least = max(0, min(3, 3 - floor(log10(largest)))) if largest else 3
    digits = digits_for((one.half for one in means.values()), least, least + 1)
    finer = digits_for((difference.half for difference in tests.values()), least + bool(least), 5)

    def mean(row: Row) -> str:
        one = means.get(row.name)
        return with_interval(one.mean, one.half, digits) if one else ""

    def shown(row: Row) -> str:
        d = tests.get(row.name)
        return with_interval(d.mean, d.half, finer, signed=True) if d else ""

    def p(row: Row) -> float | None:
        return tests[row.name].p_holm if row.name in tests else None

    def decision(row: Row) -> str:
        d = tests.get(row.name)
        if d is None or d.p_holm is None or d.decision != "undecided":
            return d.decision if d and d.p_holm is not None else ""
        return f"undecided ({seeds_to_decide(d, len(metric.pairs)).seeds or f'>{MOST_SEEDS}'})"

    yield Column(
        metric.name,
        metric.name,
        table,
        mean,
        lambda row: means[row.name].mean if row.name in means else None,
        f"{metric.path} in result.json, mean over seeds",
    )
    yield Column(
        "difference",
        f"Δ {against}",
        table,
        shown,
        lambda row: tests[row.name].mean if row.name in tests else None,
        f"arm minus {against}, paired by seed",
        metric=metric,
        strong=lambda row: row.name in tests and tests[row.name].real,
    )
    test = f"paired t-test against {against}, Holm's correction for all pairs of arms"
    yield Column("p", "p", table, lambda row: p_value(p(row)), p, test)
    within = f"equivalent: interval within ±{metric.margin:g}; " if metric.margin else ""
    decisions = f"different: p < 0.05; {within}undecided: in brackets, seeds that would decide"
    yield Column("decision", "Decision", table, decision, p, decisions)


def _means(comparison: Comparison) -> Iterator[Column]:
    """Means over seeds; the cells of a compared metric are strong if it differs significantly."""
    by, rows = comparison.by, comparison.rows
    digits = digits_for((row.quality.half for row in rows), high=4)
    bits, two, three = (partial(fixed, digits=n) for n in (digits, 2, 3))
    at_equal = f"{comparison.bits} where the arm with the fewest {by} ends"
    yield Column(
        "at_equal",
        f"At equal {by}",
        WORTH,
        lambda row: bits(row.at_equal),
        lambda row: row.at_equal,
        at_equal,
        "low",
    )

    def mean(
        title: str,
        path: str | Measure,
        show: Show,
        meaning: str,
        best: Best = "",
        table: str = WORTH,
    ) -> Column:
        measure = path if isinstance(path, Measure) else Measure(path, path, path)
        metric = comparison.metrics.get(measure.measured)

        def value(row: Row) -> float | None:
            return measure.of(row.arm)

        def strong(row: Row) -> bool:
            difference = metric.to_reference(row.name) if metric else None
            return difference is not None and difference.real

        name = measure.counted.rpartition(".")[2]
        return Column(
            name, title, table, lambda row: show(value(row)), value, meaning, best, strong=strong
        )

    yield mean("Above floor", "quality.excess_bits", bits, "bits per token above the floor", "low")
    yield mean("MaxVio", MAX_VIO, two, "max load / mean load − 1; 0 is balanced", "low")
    spread = "exp of the load entropy, as a share of all experts; 1 is balanced"
    yield mean("Eff. experts", "routing.mean.effective_experts", two, spread, "high")
    dead = "share of experts that got no token"
    yield mean("Dead", "routing.mean.dead_experts", percent, dead, "low")
    yield mean("Dropped", "routing.mean.dropped", percent, "share of assignments dropped", "low")
    yield mean("k used", "routing.mean.k_used", two, "experts per token, mean")
    nmi = "specialisation: normalised mutual information of expert and domain; 0 none, 1 full"
    yield mean("Domain NMI", DOMAIN_NMI, two, nmi, "high")
    regret = "nats per token lost against the best expert in hindsight"
    yield mean("Regret", "probe.regret_nats", three, regret, "low")
    for path in comparison.more:
        yield mean(path.rpartition(".")[2], path, three, f"{path} in result.json")
    active = "parameters that a token used in training"
    yield mean("Active params", ACTIVE, si, active, table=COST)
    yield mean("Params", "params.total", si, "all parameters", table=COST)
    flops = "forward and backward, as carried out in training"
    yield mean("FLOPs/token", FLOPS, si, flops, table=COST)
    yield mean("Tokens/s", "train.tokens_per_second", si, "training speed", "high", COST)
    memory = "peak while training"
    yield mean("Memory", "train.peak_memory_bytes", gibibytes, memory, "low", COST)
    yield mean("Tokens", "train.tokens", si, "seen in training", table=COST)
    yield mean("Time", "train.seconds", duration, "of training, mean over seeds", "low", COST)


def seeds_cell(row: Row) -> str:
    """`3`, or `3 of 5` if two of the arm's runs are left out."""
    n = row.quality.n
    return f"{n} of {n + row.arm.missing}" if row.arm.missing else str(n)


def tables(comparison: Comparison) -> list[Table]:
    """Every table that has a column beside the arms."""
    by_table: dict[str, list[Column]] = {}
    for column in columns(comparison):
        by_table.setdefault(column.table, []).append(column)
    made = []
    for name, shown in by_table.items():
        best = {column.name: _best(column, comparison) for column in shown}
        lines = []
        for row in comparison.in_order:
            marks = comparison.marks(row) if name == WORTH else ""
            cells = [Cell(f"{row.name} {marks}".strip())]
            for column in shown:
                wins = best[column.name] is not None and column.value(row) == best[column.name]
                cells.append(Cell(column.cell(row) or "–", column.strong(row), wins))
            lines.append(cells)
        made.append(Table(name, ["Arm", *(column.title for column in shown)], lines))
    return made


def _best(column: Column, comparison: Comparison) -> float | None:
    """The best value of the ranked arms; None if no value is better, or all are alike."""
    values = {value for row in comparison.ranked if (value := column.value(row)) is not None}
    if not column.best or len(values) < 2:
        return None
    return min(values) if column.best == "low" else max(values)
