from __future__ import annotations

from router_lab.metrics.agreement import Agreement


class Churn(Agreement):
    """1 − |S^t ∩ S^{t−Δ}| / k: the part of the choice that changed since the previous validation.

    `update(routing, before_TE)` takes the probe batch's record and its `selection` of last time.
    0 where nothing moved. For a k that varies see `Agreement`. Our own definition.
    """

    def compute(self) -> float:
        return 1 - super().compute() if self.tokens > 0 else 0.0
