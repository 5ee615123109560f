from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class WeightEntropy(SumMetric):
    """Mean over tokens of H(w / Σ w) / log |S|, w the combine weights of the token's experts S.

    1 where they share the token evenly, 0 where one has it all. Tokens with fewer than two experts
    take no part. LibMoE logs it unnormalised.
    """

    sums = ("weight_entropy", "weight_tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["weight_entropy"] / sums["weight_tokens"].clamp_min(1))
