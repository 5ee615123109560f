"""Experts that a token really gets, after drops; it varies for many routers."""

from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class KUsed(SumMetric):
    """Mean number of experts of a token."""

    sums = ("load_E", "tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["load_E"].sum() / sums["tokens"].clamp_min(1))


class KStd(SumMetric):
    """Standard deviation (population) over tokens of the number of experts of a token."""

    sums = ("load_E", "used_squared", "tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        tokens = sums["tokens"].clamp_min(1)
        mean = sums["load_E"].sum() / tokens
        return float((sums["used_squared"] / tokens - mean.square()).clamp_min(0).sqrt())
