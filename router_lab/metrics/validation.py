"""The validation set: everything that a layer's records say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from router_lab.metrics.base import SumMetric
from router_lab.metrics.coactivation import CoActivation, CoActivationMatrix
from router_lab.metrics.domain import DomainSpecialisation
from router_lab.metrics.everyday import EVERYDAY, RoutingMetrics, scalars, sums_of
from router_lab.metrics.logit_norm import LogitNorm
from router_lab.metrics.router_margin import RouterMargin
from router_lab.metrics.vocab import VocabSpecialisation
from router_lab.metrics.weight_entropy import WeightEntropy
from router_lab.routing import Routing

ALL_SUMS: dict[str, type[SumMetric]] = {
    **EVERYDAY,
    "router_margin": RouterMargin,
    "logit_norm": LogitNorm,
    "weight_entropy": WeightEntropy,
    "coactivation": CoActivation,
    "coactivation_EE": CoActivationMatrix,
}


class _Sums(RoutingMetrics):
    metrics: ClassVar[Mapping[str, type[SumMetric]]] = ALL_SUMS
    sums = sums_of(ALL_SUMS)


class ValidationMetrics:
    """All figures of one layer over a validation set: the everyday ones and those too dear for it.

    Args:
        n_experts: E of the layer's router.
        vocab_size: V, for the specialisation by token id; 0 leaves it out.
        n_domains: D, where the data says which domain a token is of; 0 leaves it out.
    """

    def __init__(self, n_experts: int, vocab_size: int = 0, n_domains: int = 0) -> None:
        self.sums = _Sums(n_experts)
        self.vocab = VocabSpecialisation(n_experts, vocab_size) if vocab_size else None
        self.domain = DomainSpecialisation(n_experts, n_domains) if n_domains else None

    def to(self, device: torch.device) -> ValidationMetrics:
        for metric in (self.sums, self.vocab, self.domain):
            if metric is not None:
                metric.to(device)
        return self

    def update(self, routing: Routing, domain_T: Tensor | None = None) -> None:
        """Args: domain_T: domain of each token, long; −1 for none. Needed with `n_domains`."""
        self.sums.update(routing)
        if self.vocab is not None:
            self.vocab.update(routing)
        if self.domain is not None:
            assert domain_T is not None, "n_domains was given, so update needs domain_T"
            self.domain.update(routing, domain_T)

    def compute(self) -> dict[str, Any]:
        """Numbers, and lists of E shares: what a result file keeps of the layer."""
        return {name: v for name, v in self._all().items() if not isinstance(v, np.ndarray)}

    def pictures(self) -> dict[str, np.ndarray]:
        """Matrices to be drawn: `coactivation_EE`, and `share_DE` where there are domains."""
        return {name: v for name, v in self._all().items() if isinstance(v, np.ndarray)}

    def scalars(self) -> dict[str, float]:
        return scalars(self.compute())

    def reset(self) -> None:
        for metric in (self.sums, self.vocab, self.domain):
            if metric is not None:
                metric.reset()

    def _all(self) -> dict[str, Any]:
        found: dict[str, Any] = self.sums.compute()
        if self.vocab is not None:
            found = {**found, "vocab_specialisation": self.vocab.compute()}
        return {**found, **(self.domain.compute() if self.domain is not None else {})}
