"""The columns of a comparison: the quality of the arms, and their cost.

Two tables, each narrow enough for a README. Columns that no run can fill are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router_lab.report.comparison import Comparison, Row
from router_lab.report.fairness import ACTIVE, FLOPS, Measure
from router_lab.runs import text

WORTH, COST = "worth", "cost"


@dataclass(frozen=True)
class Column:
    """A column: `cell` is what is shown, `value` the sorting key."""

    title: str
    table: str
    cell: Callable[[Row], str]
    value: Callable[[Row], float | None]
    meaning: str


def columns(comparison: Comparison) -> list[Column]:
    """The columns that at least one arm can fill, the arm's name not among them."""
    base, rows = comparison.baseline, comparison.rows
    tested = [row.difference for row in rows if row.difference is not None]
    digits = text.digits_for((row.quality.half for row in rows), high=4)
    finer = text.digits_for((difference.half for difference in tested), 4)
    made = [
        Column(
            "Seeds",
            WORTH,
            seeds_cell,
            lambda row: row.quality.n,
            "compared; `3 of 5` if 2 runs are left out",
        ),
        Column(
            comparison.bits.capitalize(),
            WORTH,
            lambda row: text.with_interval(row.quality.mean, row.quality.half, digits),
            lambda row: row.quality.mean,
            "quality on the validation text, mean over seeds; lower is better",
        ),
        Column(
            f"Δ {base.name}",
            WORTH,
            lambda row: _difference_cell(row, finer),
            lambda row: row.difference.mean if row.difference else None,
            f"{comparison.bits} minus the baseline's, paired by seed",
        ),
        Column(
            "p",
            WORTH,
            lambda row: text.p_value(_p(row)),
            _p,
            "paired t-test against the baseline, Holm's correction for all pairs of arms",
        ),
        Column(
            f"At equal {comparison.by}",
            WORTH,
            lambda row: text.fixed(row.at_equal, digits),
            lambda row: row.at_equal,
            f"{comparison.bits} where the arm with the fewest {comparison.by} ends",
        ),
        _mean(
            "Above floor",
            "quality.excess_bits",
            digits,
            "bits per token above the lowest possible loss",
        ),
        _mean("MaxVio", "routing.mean.max_vio", 2, "max load / mean load − 1; 0 is balanced"),
        _mean(
            "Eff. experts",
            "routing.mean.effective_experts",
            2,
            "exp of the load entropy, as a share of all experts; 1 is balanced",
        ),
        _share("Dead", "routing.mean.dead_experts", "share of experts that got no token"),
        _share("Dropped", "routing.mean.dropped", "share of assignments dropped"),
        _mean("k used", "routing.mean.k_used", 2, "experts per token, mean"),
        _mean(
            "Domain NMI",
            "routing.mean.domain_nmi",
            2,
            "specialisation: normalised mutual information of expert and domain; 0 none, 1 full",
        ),
        _mean(
            "Regret",
            "probe.regret_nats",
            3,
            "nats per token lost against the best expert in hindsight",
        ),
        *(
            _mean(path.rpartition(".")[2], path, 3, f"{path} in result.json")
            for path in comparison.more
        ),
        _measured("Active params", ACTIVE, "parameters that a token used in training"),
        _number("Params", "params.total", text.si, "all parameters"),
        _measured("FLOPs/token", FLOPS, "forward and backward, as carried out in training"),
        _number("Tokens/s", "train.tokens_per_second", text.si, "training speed"),
        _number("Memory", "train.peak_memory_bytes", text.gibibytes, "peak while training"),
        _number("Tokens", "train.tokens", text.si, "seen in training"),
        _number("Time", "train.seconds", text.duration, "of training, mean over seeds"),
    ]
    return [column for column in made if any(column.value(row) is not None for row in rows)]


def seeds_cell(row: Row) -> str:
    """`3`, or `3 of 5` where two of the arm's runs are left out."""
    n = row.quality.n
    return f"{n} of {n + row.arm.missing}" if row.arm.missing else str(n)


def _p(row: Row) -> float | None:
    return row.difference.p_holm if row.difference else None


def _difference_cell(row: Row, digits: int) -> str:
    if row.difference is None:
        return ""
    return text.with_interval(row.difference.mean, row.difference.half, digits, signed=True)


def _mean(title: str, path: str, digits: int, meaning: str) -> Column:
    return _number(title, path, lambda value: text.fixed(value, digits), meaning, WORTH)


def _share(title: str, path: str, meaning: str) -> Column:
    return _number(title, path, text.percent, meaning, WORTH)


def _measured(title: str, measure: Measure, meaning: str) -> Column:
    def value(row: Row) -> float | None:
        return measure.of(row.arm)

    return Column(title, COST, lambda row: text.si(value(row)), value, meaning)


def _number(
    title: str, path: str, shown: Callable[[float | None], str], meaning: str, table: str = COST
) -> Column:
    def value(row: Row) -> float | None:
        return row.arm.mean(path)

    return Column(title, table, lambda row: shown(value(row)), value, meaning)


def tables(
    comparison: Comparison, emphasise: Callable[[str], str]
) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and cells of both tables; significant differences go through `emphasise`."""
    made = []
    for table in (WORTH, COST):
        shown = [column for column in columns(comparison) if column.table == table]
        lines = []
        for row in comparison.rows:
            cells = [f"{row.name} {comparison.marks(row)}".strip() if table == WORTH else row.name]
            for column in shown:
                cell = column.cell(row) or "–"
                real = column.title.startswith("Δ") and row.difference and row.difference.real
                cells.append(emphasise(cell) if real else cell)
            lines.append(cells)
        if shown:
            made.append((["Arm", *(column.title for column in shown)], lines))
    return made
