from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class LogitNorm(SumMetric):
    """Mean over tokens of the Euclidean norm of the logits ‖z‖₂; 0 for a router that has none.

    Logits that grow without end saturate the softmax and lose precision: what the z-loss is against
    (ST-MoE, arXiv:2202.08906, eq. 5).
    """

    sums = ("logit_norm", "tokens")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["logit_norm"] / sums["tokens"].clamp_min(1))
