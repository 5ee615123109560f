"""Maximal violation of balance: how much more than its fair part the busiest expert carries."""

from __future__ import annotations

from router_lab.metrics.base import SumMetric, Sums


class MaxVio(SumMetric):
    """MaxVio_global = max_i load_i / mean load − 1, over all tokens seen.

    0 at balance, E − 1 at collapse. Of the load carried out, so a capacity limit holds it down;
    what the limit cost stands in `dropped`. Loss-free balancing, arXiv:2408.15664.
    """

    sums = ("load_E",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        load_E = sums["load_E"]
        if load_E.sum() == 0:
            return 0.0
        return float(load_E.max() / load_E.mean() - 1)


class MaxVioBatch(SumMetric):
    """MaxVio_batch: the same of each batch by itself, averaged over the batches.

    A batch without any assignment does not count. arXiv:2408.15664.
    """

    sums = ("violation", "batches")

    @classmethod
    def value(cls, sums: Sums) -> float:
        return float(sums["violation"] / sums["batches"].clamp_min(1))
