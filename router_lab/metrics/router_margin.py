from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class RouterMargin(SumMetric):
    """Mean over tokens of min_{i ∈ S} p_i − max_{i ∉ S} p_i, S the token's experts.

    How far, in probability, the worst chosen expert is from being replaced by the best other one.
    Negative where the choice does not follow the probabilities (a bias on the selection, a drop, a
    hash). Tokens with no expert or all of them have none. LibMoE logs the case k = 1.
    """

    sums = ("margin", "margin_tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["margin"] / sums["margin_tokens"].clamp_min(1))
