"""The decorator that makes a function of sums a metric, and the torchmetrics classes that carry it.

    @metric
    def max_vio(load_E: Tensor) -> float:
        \"\"\"max_i load_i / mean load − 1.\"\"\"
        return float(load_E.max() / load_E.mean() - 1)

The parameters name the sums that the metric reads (`router_lab.metrics.records`). That is all: the
metric is computed at every validation for every routed layer and appears in result.json,
TensorBoard and the comparison. A plugin file may hold metrics as it holds routers, and so may the
module that an installed package names as an entry point `router_lab.metrics`.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from router_lab.errors import UserError
from router_lab.metrics.records import SUMS, RecordView, refuse_taken
from router_lab.routing import Routing

Value = float | list[float] | np.ndarray
"""A number, one number per expert, or a matrix that is only drawn."""


@dataclass(frozen=True)
class RoutingMetric:
    """A metric of routing records: a function of sums, on the host in float64.

    Attributes:
        name: in result.json, TensorBoard and the comparison.
        function: of the sums that its parameters name. Of nothing at all: zero.
        sums: names in SUMS.
    """

    name: str
    function: Callable[..., Value]
    sums: tuple[str, ...]

    def __call__(self, *args: Any, **sums: Any) -> Any:
        return self.function(*args, **sums)

    @property
    def sizes(self) -> frozenset[str]:
        """The sizes that its sums need: E, and V or D for specialisation."""
        return frozenset("".join(SUMS[name].axes for name in self.sums))


METRICS: dict[str, RoutingMetric] = {}
PROBLEMS: dict[str, str] = {}
"""Installed metrics that could not be imported: entry point → why."""


@cache
def load_installed() -> None:
    """Imports the modules that installed packages name as entry points `router_lab.metrics`."""
    for point in entry_points(group="router_lab.metrics"):
        try:
            point.load()
        except (Exception, SystemExit) as error:  # someone else's code may fail in any way
            PROBLEMS[point.name] = f"{type(error).__name__}: {error}"


def metric(function: Callable[..., Value]) -> RoutingMetric:
    """Registers a function of sums as a metric.

    Raises UserError where another file has the name or a parameter names no sum.
    """
    name = function.__name__
    sums = tuple(inspect.signature(function).parameters)
    for parameter in sums:
        if parameter not in SUMS:
            raise UserError(
                f"The metric {name} reads {parameter!r}, which is no sum over records; "
                f"the sums are {', '.join(SUMS)}."
            )
    if name in METRICS:
        refuse_taken("metric", METRICS[name].function, function)
    METRICS[name] = RoutingMetric(name, function, sums)
    return METRICS[name]


class MeanMetric(Metric, ABC):
    """A weighted mean, of a number or of a vector; torchmetrics adds its sums up over ranks.

    Args:
        length: of the vector; None for a number.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        zeros = torch.zeros(() if length is None else length)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, total: Tensor, weight: int | Tensor = 1) -> None:
        self.total = self.total + total
        self.weight = self.weight + weight

    def compute(self) -> Any:
        """A float, or a list for a vector; 0 before the first update."""
        return (self.total / self.weight.clamp_min(1)).tolist()


class RoutingMetrics(Metric):
    """Metrics of one layer, each sum computed once; torchmetrics adds the sums up over ranks.

    `RoutingMetrics(n_experts, names=["max_vio"])` is one of them alone.

    Args:
        n_experts: E of the layer's router.
        vocab_size: V, for specialisation by token id; 0 leaves it out.
        n_domains: D, where the data says which domain a token is of; 0 leaves it out.
        names: the metrics; all registered ones when None.
    """

    full_state_update = False

    def __init__(
        self,
        n_experts: int,
        vocab_size: int = 0,
        n_domains: int = 0,
        names: Iterable[str] | None = None,
    ) -> None:
        # From the cache, a rank whose expert got no token would skip the sum over ranks.
        super().__init__(compute_with_cache=False)
        load_installed()
        chosen = METRICS.values() if names is None else [METRICS[name] for name in names]
        self.sizes = {"E": n_experts, "V": vocab_size, "D": n_domains}
        self.metrics = [m for m in chosen if all(self.sizes[axis] for axis in m.sizes)]
        sum_names = [name for m in self.metrics for name in m.sums]
        self.sums = tuple(dict.fromkeys([*sum_names, "n_tokens"]))
        for name in self.sums:
            self.add_state(name, SUMS[name].zero(self.sizes), dist_reduce_fx="sum")
        self.kinds: tuple[str, ...] = ()

    @property
    def n_experts(self) -> int:
        return self.sizes["E"]

    def update(self, routing: Routing, domain_T: Tensor | None = None) -> None:
        """Adds the layer's record of one batch.

        Args:
            domain_T: domain of each token, long, −1 for none; needed with `n_domains`.
        """
        with torch.no_grad():
            view = RecordView(routing, self.sizes, domain_T)
            for name in self.sums:
                setattr(self, name, getattr(self, name) + SUMS[name].of(view))
        self.kinds = routing.kinds  # the same in every record of a layer

    def compute(self) -> dict[str, Any]:
        """Every metric by name, and `tokens`, the number of tokens seen.

        In a layer with experts of more than one kind also the share of the load of each kind:
        `load_ffn`, `load_zero` ….
        """
        sums = {name: getattr(self, name).cpu().double() for name in self.sums}
        values: dict[str, Any] = {
            m.name: m.function(**{name: sums[name] for name in m.sums}) for m in self.metrics
        }
        if len(set(self.kinds)) > 1 and "load" in values:
            for kind in dict.fromkeys(self.kinds):
                of_kind = zip(values["load"], self.kinds, strict=True)
                values[f"load_{kind}"] = sum(share for share, other in of_kind if other == kind)
        return {**values, "tokens": int(sums["n_tokens"])}


def without_matrices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and lists: what result.json keeps of a layer."""
    return {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}


def matrices(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The matrices, which are only drawn: `coactivation_EE`, and `share_DE` with domains."""
    return {name: v for name, v in values.items() if isinstance(v, np.ndarray)}


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float)}


def mean_over_layers(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number over the layers that have it; layers without tokens are left out.

    Args:
        layers: what `RoutingMetrics.compute` gave, by layer name.
    """
    with_tokens = [scalars(values) for values in layers.values() if values.get("tokens", 1) > 0]
    names = dict.fromkeys(name for values in with_tokens for name in values)
    columns = {name: [values[name] for values in with_tokens if name in values] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}
