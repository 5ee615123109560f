"""How many seeds would tell two arms apart, as a table."""

from __future__ import annotations

from router_lab.report.comparison import Comparison
from router_lab.report.statistics import ALPHA, MOST_SEEDS, Difference, seeds_needed
from router_lab.report.style import in_focus

TOLD_APART = "✓"
CAPTION = (
    "How many seeds it would take to find the difference between two arms in 8 cases of 10, by the "
    "paired t-test at 5% corrected for all pairs of arms, if difference and spread are as seen "
    f"here. {TOLD_APART}: told apart already."
)


def seeds_table(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Names, best first, and for each pair of the upper triangle what to show; others are empty.

    None where no two arms share two seeds, so that nothing is known of the spread.
    """
    focus = {row.name for row in in_focus(comparison)}
    names = [row.name for row in comparison.rows if row.name in focus]
    if not any(difference.sd is not None for difference in comparison.pairs.values()):
        return None
    cells = [[_cell(comparison, a, b) if j > i else "" for j, b in enumerate(names)]
             for i, a in enumerate(names)]  # fmt: skip
    return names, cells


def seeds_for_pair(comparison: Comparison, difference: Difference) -> int | None:
    """Seeds to tell two arms apart although all pairs are tested (Bonferroni's level)."""
    return seeds_needed(difference.mean, difference.sd, ALPHA / len(comparison.pairs))


def _cell(comparison: Comparison, better: str, worse: str) -> str:
    difference = comparison.pairs.get((better, worse))
    if difference is None or difference.sd is None:
        return "–"
    if difference.real:
        return TOLD_APART
    needed = seeds_for_pair(comparison, difference)
    return f">{MOST_SEEDS}" if needed is None else str(needed)
