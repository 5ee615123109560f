"""How the assignments spread over the experts: three shares of E numbers each."""

from __future__ import annotations

from collections.abc import Sequence

from router_lab.metrics.base import SumMetric, Sums, shares


class Load(SumMetric):
    """load_i / Σ load: share of the assignments carried out by each expert, [E], sums to 1.

    Times E it is the ratio of load to ideal load (1 at balance).
    """

    sums = ("load_E",)

    @classmethod
    def value(cls, sums: Sums) -> list[float]:
        return shares(sums["load_E"]).tolist()


class Demand(SumMetric):
    """Share of the assignments asked of each expert, before any capacity limit, [E], sums to 1."""

    sums = ("demand_E",)

    @classmethod
    def value(cls, sums: Sums) -> list[float]:
        return shares(sums["demand_E"]).tolist()


class Importance(SumMetric):
    """Share of the combine weight of each expert, [E], sums to 1 (arXiv:1701.06538, eq. 6)."""

    sums = ("importance_E",)

    @classmethod
    def value(cls, sums: Sums) -> list[float]:
        return shares(sums["importance_E"]).tolist()


def by_kind(share_E: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Shares of the experts added up by kind of expert, in the order of the numbering.

    Args:
        kinds: the kind of every expert, as `Routing.kinds` has it: ffn, zero, copy, constant.
    """
    return {
        kind: sum(share for share, own in zip(share_E, kinds, strict=True) if own == kind)
        for kind in dict.fromkeys(kinds)
    }
