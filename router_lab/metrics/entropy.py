"""Two entropies of the router's distribution, in units of log E, so that both run from 0 to 1.

By Jensen's inequality the confidence entropy never exceeds the balance entropy; the gap is the
mutual information between token and expert, in the same unit. One expert: both are defined as 1 and
0. Tokens for which the router has no distribution (a row of zeros) take no part.
"""

from __future__ import annotations

import math

from router_lab.metrics.base import SumMetric, Sums, entropy, shares


class BalanceEntropy(SumMetric):
    """H(mean p) / log E: 1 where the experts are equally likely on average."""

    sums = ("probs_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        probs_E = sums["probs_E"]
        if probs_E.sum() == 0:
            return 0.0
        return entropy(shares(probs_E)) / math.log(len(probs_E)) if len(probs_E) > 1 else 1.0


class ConfidenceEntropy(SumMetric):
    """mean H(p) / log E: 0 where the router is certain of every token, 1 where it has no idea."""

    sums = ("entropy", "probs_E")

    @classmethod
    def value(cls, sums: Sums) -> float:
        probs_E = sums["probs_E"]
        tokens = probs_E.sum()  # every row sums to 1, or to 0
        if tokens == 0 or len(probs_E) == 1:
            return 0.0
        return float(sums["entropy"] / tokens) / math.log(len(probs_E))
