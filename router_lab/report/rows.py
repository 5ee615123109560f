"""The numbers behind a comparison as rows, for pandas and others: runs and pairs of arms.

docs/result.md describes the columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from router_lab.report.comparison import Comparison
from router_lab.report.metric import QUALITY
from router_lab.report.statistics import estimate, seeds_to_decide

SECTIONS = ("params", "flops_per_token", "flops_per_token_measured", "match", "budget", "train",
            "evaluation", "quality", "routing.mean", "probe")  # fmt: skip
"""Parts of result.json whose numbers are columns of runs.csv, under their dotted paths."""


class RunRow(TypedDict):
    """A row of runs.csv and runs.parquet: a run that was compared.

    The other columns are all numbers of its result.json, under their dotted paths:
    `quality.bits_per_byte`, `routing.mean.max_vio`, `train.tokens_per_second`. They are empty if a
    run lacks them.
    """

    arm: Annotated[str, "name of the arm in the comparison"]
    seed: Annotated[int, "seed of the run"]
    grid: Annotated[str, "name of the grid"]
    ranked: Annotated[bool, "whether the arm has the seeds on which arms are compared"]
    baseline: Annotated[bool, "whether the arm is the baseline"]
    matched: Annotated[bool, "whether its budget and evaluation equal the baseline's"]
    converged: Annotated[bool, "whether the arm's quality had stopped improving"]
    lookahead: Annotated[str, "as in result.json"]
    ffn: Annotated[str | None, "as in result.json"]
    router: Annotated[str | None, "as in result.json"]
    fingerprint: Annotated[str | None, "as in result.json"]
    folder: Annotated[str, "name of the run's folder"]


class PairRow(TypedDict):
    """A row of pairs.csv: two ranked arms, compared by one metric over their common seeds."""

    metric: Annotated[str, "dotted path in result.json"]
    arm: Annotated[str, "the arm with the lower mean"]
    other: Annotated[str, "the arm with the higher mean"]
    difference: Annotated[float, "arm − other, mean over seeds"]
    half95: Annotated[float | None, "half the width of its interval, corrected as the tests are"]
    sd: Annotated[float | None, "of the difference, over seeds"]
    seeds: Annotated[int, "how many"]
    p: Annotated[float | None, "paired t-test, two-sided"]
    p_holm: Annotated[float | None, "after Holm's correction for all pairs of the metric"]
    margin: Annotated[float | None, "within which arms are equivalent; empty without one"]
    p_equivalent: Annotated[float | None, "twice that of two one-sided tests (TOST), corrected"]
    decision: Annotated[str, "different, equivalent or undecided"]
    seeds_to_decide: Annotated[int | None, "of an undecided pair, per arm; empty beyond 1000"]
    would_be: Annotated[str | None, "what so many seeds would show: different or equivalent"]


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A `RunRow` per run that was compared, with every number of its result."""
    rows = []
    for row in comparison.in_order:
        for run in row.arm.runs:
            fixed = RunRow(
                arm=row.name,
                seed=run.seed,
                grid=run.grid,
                ranked=row.ranked,
                baseline=row is comparison.baseline,
                matched=not row.unmatched,
                converged=row.converged,
                lookahead=row.arm.lookahead,
                ffn=run.result.get("ffn"),
                router=run.result.get("router"),
                fingerprint=run.result.get("fingerprint"),
                folder=run.path.name,
            )
            rows.append({**fixed, **dict(_numbers(run.result))})
    return rows


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        path = f"{prefix}{key}"
        inside = any(f"{path}.".startswith(f"{section}.") for section in SECTIONS)
        if isinstance(value, Mapping) and (inside or path == "routing"):
            yield from _numbers(value, f"{path}.")
        elif inside and isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def pair_rows(comparison: Comparison) -> list[PairRow]:
    """A row per metric and pair of ranked arms: the difference, its tests, and the decision."""
    rows = []
    for metric in comparison.metrics.values():
        for (arm, other), d in metric.pairs.items():
            undecided = d.p is not None and d.decision == "undecided"
            plan = seeds_to_decide(d, len(metric.pairs)) if undecided else None
            row = PairRow(
                metric=metric.path,
                arm=arm,
                other=other,
                difference=d.mean,
                half95=d.half,
                sd=d.sd,
                seeds=d.n,
                p=d.p,
                p_holm=d.p_holm,
                margin=d.margin,
                p_equivalent=d.p_same,
                decision=d.decision,
                seeds_to_decide=plan.seeds if plan else None,
                would_be=plan.outcome if plan and plan.seeds else None,
            )
            rows.append(row)
    return rows


def arm_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per arm: means and deviations over seeds, and the difference from the baseline.

    Numbers in `routing.mean` go by their name alone. Keys that no arm has are left out.
    """
    rows = []
    for row in comparison.in_order:
        d = row.difference
        means: dict[str, Any] = {
            "arm": row.name,
            "baseline": comparison.baseline.name,
            "lookahead": row.arm.lookahead,
            "matched": not row.unmatched,
            "converged": row.converged,
            "seeds": row.quality.n,
            "seeds_missing": row.arm.missing,
            "bits_per_byte": row.quality.mean,
            "bits_per_byte_sd": row.quality.sd,
            "bits_per_byte_half95": row.quality.half,
            "difference": d and d.mean,
            "difference_half95": d and d.half,
            "difference_seeds": d and d.n,
            "p": d and d.p,
            "p_holm": d and d.p_holm,
            "decision": d and d.decision,
            "bits_per_byte_at_equal_budget": row.at_equal,
            "fall_in_last_fifth": row.falling,
        }
        for path in dict.fromkeys(path for run in row.arm.runs for path, _ in _numbers(run.result)):
            if path != QUALITY and (values := row.arm.values(path)):
                one, name = estimate([*values.values()]), path.replace("routing.mean.", "")
                means |= {name: one.mean, f"{name}_sd": one.sd}
        rows.append(means)
    used = {key for row in rows for key, value in row.items() if value is not None}
    return [{key: value for key, value in row.items() if key in used} for row in rows]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, a column per key of any of them; empty without rows."""
    out = io.StringIO()
    fields = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(out, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Writes the rows as Parquet. Without pyarrow it removes an older file and returns False."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.unlink(missing_ok=True)
        return False
    fields = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in fields}
    parquet.write_table(pyarrow.table(columns), path)
    return True
