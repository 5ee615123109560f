"""What a capacity limit, or the router itself, left undone."""

from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class Dropped(SumMetric):
    """1 − Σ load / Σ demand: share of the assignments asked for and not carried out."""

    sums = ("load_E", "demand_E")

    @classmethod
    def value(cls, sums: Sums) -> float:
        asked = sums["demand_E"].sum()
        return float(1 - sums["load_E"].sum() / asked) if asked > 0 else 0.0


class DroppedTokens(SumMetric):
    """Share of the tokens left with no expert.

    Whether all their assignments were dropped or the router gave them none (expert choice).
    """

    sums = ("without_expert", "tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["without_expert"] / sums["tokens"].clamp_min(1))
