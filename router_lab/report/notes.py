"""What a reader of the tables must know, in one or two sentences each; every mark is explained."""

from __future__ import annotations

from router_lab.report.comparison import LOOKS_AHEAD, NOT_CONVERGED, NOT_MATCHED, Comparison, Row
from router_lab.report.curves import FALL
from router_lab.report.metric import DOMAIN_NMI, MAX_VIO
from router_lab.runs.text import count, listing, percent, si

UNITS = {"tokens": " tokens", "flops": " FLOPs", "seconds": " s"}


def notes(comparison: Comparison) -> list[str]:
    """The notes below the tables, in the order in which the columns raise the questions."""
    rows, base = comparison.rows, comparison.baseline
    lines = []
    if comparison.bits == "bits per token":
        lines.append(
            "The data have no tokenizer, so the bytes of a token are unknown; quality is in bits "
            "per token."
        )
    if len(rows) > 1:
        lines.append(_test_note(comparison))
        lines += _metric_note(comparison)
    unpaired = [run for run in comparison.left_out if run.state == "unpaired"]
    if unpaired:
        names = listing(sorted({run.arm for run in unpaired}))
        lines.append(
            f"The arms are compared on the {count(len(comparison.seeds), 'seed')} that all have "
            f"({_seeds(comparison)}). More seeds of {names} are not used."
        )
    if comparison.ranked and (unranked := [row.name for row in rows if not row.ranked]):
        lines.append(f"Too few seeds to be ranked: {listing(unranked)}.")
    if looking := [row.name for row in rows if row.arm.sees_the_future]:
        lines.append(
            f"{LOOKS_AHEAD} Looks ahead in evaluation: {listing(looking)}. Later tokens affect a "
            "token's experts, so this quality cannot be reached when generating text."
        )
    lines += [
        f"{NOT_MATCHED} {row.name} does not match {base.name}: {row.mismatch}."
        for row in rows
        if row.unmatched
    ]
    lines += _convergence(comparison)
    if comparison.equal_budget is not None:
        lines.append(
            f"At {si(comparison.equal_budget)}{UNITS[comparison.by]}: quality read off the "
            "learning curves where the arm with the smallest budget ends. The other arms were "
            "still learning there."
        )
    return lines + [words for row in rows if (words := _mixed_code(row))]


def _test_note(comparison: Comparison) -> str:
    to_base = f"Differences are to {comparison.baseline.name} ({comparison.baseline_why})"
    if len(comparison.seeds) < 2:
        return f"{to_base}. A single common seed gives no interval of a difference and no test."
    tests = count(len(comparison.pairs), "comparison")
    return (
        f"{to_base}, paired by seed. p is of the paired t-test after Holm's correction for {tests} "
        "(any two arms). The 95% interval of a difference (±) is corrected alike, so it excludes 0 "
        "exactly where p is below 0.05: the arms are different, and the difference is in bold. "
        f"Otherwise they are equivalent if the interval is within ±{comparison.margin:g} "
        f"{comparison.bits} (two one-sided t-tests, corrected alike), and undecided if not, with "
        f"the seeds per arm that would decide in brackets. The interval of an arm's "
        f"{comparison.bits} is its own 95% t-interval, without correction."
    )


def _metric_note(comparison: Comparison) -> list[str]:
    """What a bold cell of balance or specialisation means."""
    metrics = [
        comparison.metrics[path]
        for path in (MAX_VIO, DOMAIN_NMI)
        if path in comparison.metrics and comparison.metrics[path].pairs
    ]
    if len(comparison.seeds) < 2 or not metrics:
        return []
    names = " or ".join({MAX_VIO: "MaxVio", DOMAIN_NMI: "Domain NMI"}[one.path] for one in metrics)
    return [
        f"{names} in bold differs from that of {metrics[0].reference} (paired t-test, p < 0.05). "
        "Each metric is a family of tests of its own, with Holm's correction for any two arms."
    ]


def _seeds(comparison: Comparison) -> str:
    return listing([str(seed) for seed in comparison.seeds])


def _convergence(comparison: Comparison) -> list[str]:
    falling = [row for row in comparison.rows if not row.converged]
    if not falling:
        return []
    shares = [row.falling for row in falling if row.falling is not None]
    span = percent(shares[0], 2)
    if min(shares) != max(shares):
        span = f"{percent(min(shares), 2)} to {percent(max(shares), 2)}"
    rule = f"in the last fifth of the run {comparison.bits} still fell by {span}"
    if comparison.none_converged:
        who = "No arm had converged" if len(falling) > 1 else "It had not converged"
        return [f"{who}: {rule}. Longer runs may change the order."]
    names = listing([row.name for row in falling])
    return [f"{NOT_CONVERGED} Not converged: {names}; {rule} (converged: below {percent(FALL)})."]


def _mixed_code(row: Row) -> str:
    for path, name in (("params.active", "active parameters"), ("flops_per_token", "FLOPs")):
        values = row.arm.values(path).values()
        if values and max(values) > 1.001 * min(values):
            return f"The seeds of {row.name} differ in {name}: the code changed between them."
    return ""
