from __future__ import annotations

import math

from router_lab.metrics.base import SumMetric, Sums, entropy, shares


class EffectiveExperts(SumMetric):
    """exp(H(f)) / E with f the load shares: the part of the experts that is really used.

    1 at balance, 1/E at collapse. The perplexity of the load, as in NeMo Automodel's metrics.
    """

    sums = ("load_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        load_E = sums["load_E"]
        if load_E.sum() == 0:
            return 0.0
        return math.exp(entropy(shares(load_E))) / len(load_E)
