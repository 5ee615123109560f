"""Coefficient of variation over experts: standard deviation (population, ddof 0) over mean.

Shazeer et al. 2017, arXiv:1701.06538, eq. 6–7 and table 6 (the losses use its square).
0 at balance, √(E − 1) at collapse.
"""

from __future__ import annotations

from torch import Tensor

from router_lab.metrics.base import SumMetric, Sums


class CVLoad(SumMetric):
    """CV of the assignments carried out per expert."""

    sums = ("load_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        return variation(sums["load_E"])


class CVImportance(SumMetric):
    """CV of the combine weight per expert."""

    sums = ("importance_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        return variation(sums["importance_E"])


def variation(value_E: Tensor) -> float:
    mean = value_E.mean()
    return float(value_E.std(correction=0) / mean) if mean > 0 else 0.0
