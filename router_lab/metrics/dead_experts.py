from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class DeadExperts(SumMetric):
    """Share of the experts that carried out no assignment at all over all tokens seen."""

    sums = ("load_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        load_E = sums["load_E"]
        return float((load_E == 0).double().mean()) if load_E.sum() > 0 else 0.0
