"""The everyday set: cheap enough to be taken at every training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from router_lab.metrics.base import SumMetric, Sums
from router_lab.metrics.cv import CVImportance, CVLoad
from router_lab.metrics.dead_experts import DeadExperts
from router_lab.metrics.dropped import Dropped, DroppedTokens
from router_lab.metrics.effective_experts import EffectiveExperts
from router_lab.metrics.entropy import BalanceEntropy, ConfidenceEntropy
from router_lab.metrics.k_used import KStd, KUsed
from router_lab.metrics.load import Demand, Importance, Load, by_kind
from router_lab.metrics.max_vio import MaxVio, MaxVioBatch
from router_lab.routing import Routing

EVERYDAY: dict[str, type[SumMetric]] = {
    "load": Load,
    "demand": Demand,
    "importance": Importance,
    "max_vio": MaxVio,
    "max_vio_batch": MaxVioBatch,
    "cv_load": CVLoad,
    "cv_importance": CVImportance,
    "effective_experts": EffectiveExperts,
    "dead_experts": DeadExperts,
    "dropped": Dropped,
    "dropped_tokens": DroppedTokens,
    "balance_entropy": BalanceEntropy,
    "confidence_entropy": ConfidenceEntropy,
    "k_used": KUsed,
    "k_std": KStd,
}


def sums_of(metrics: Mapping[str, type[SumMetric]]) -> tuple[str, ...]:
    """The sums that the metrics read, each once."""
    return tuple(dict.fromkeys(name for metric in metrics.values() for name in metric.sums))


class RoutingMetrics(SumMetric):
    """The everyday set of one layer, its sums taken once.

    `compute` gives a dict: load, demand and importance as lists of E shares, the others as numbers;
    `tokens`, how many were seen; and, for a layer with experts of more than one kind, the share of
    the load of each, as `load_ffn`, `load_zero` ….

    Args:
        n_experts: E of the layer's router.
    """

    metrics: ClassVar[Mapping[str, type[SumMetric]]] = EVERYDAY
    sums = sums_of(EVERYDAY)

    def __init__(self, n_experts: int, **options: Any) -> None:
        super().__init__(n_experts, **options)
        self.kinds: tuple[str, ...] = ()

    def update(self, routing: Routing) -> None:
        super().update(routing)
        self.kinds = routing.kinds  # the same in every record of a layer

    def compute(self) -> dict[str, Any]:
        found: dict[str, Any] = super().compute()
        if len(set(self.kinds)) > 1:
            shares = by_kind(found["load"], self.kinds)
            found.update({f"load_{kind}": share for kind, share in shares.items()})
        return found

    @classmethod
    def value(cls, sums: Sums) -> dict[str, Any]:
        values = {name: metric.value(sums) for name, metric in cls.metrics.items()}
        return {**values, "tokens": int(sums["tokens"])}

    def scalars(self) -> dict[str, float]:
        """The numbers of `compute`, without the lists and the count of tokens."""
        return scalars(self.compute())


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float)}


def mean_over_layers(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number over the layers that have it; a layer that saw no token has none.

    Args:
        layers: what `RoutingMetrics.compute` gave, by layer name.
    """
    seen = [scalars(values) for values in layers.values() if values.get("tokens", 1) > 0]
    names = dict.fromkeys(name for values in seen for name in values)
    columns = {name: [values[name] for values in seen if name in values] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}
