"""Balance: how evenly the load spreads over the experts.

The load is what was carried out, so a capacity limit lowers these figures; `dropped` is its cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from router_lab.metrics.metric import metric
from router_lab.routing import Routing


def shares(value_E: Tensor) -> Tensor:
    """Scaled to sum to 1; zeros stay zeros."""
    return value_E / value_E.sum().clamp_min(1e-12)


def entropy(share_E: Tensor) -> float:
    """−Σ s log s, in nats."""
    return float(torch.special.entr(share_E).sum())


def variation(value_E: Tensor) -> float:
    """Standard deviation (population, ddof 0) over mean; 0 for zeros."""
    mean = value_E.mean()
    return float(value_E.std(correction=0) / mean) if mean > 0 else 0.0


@metric
def load(load_E: Tensor) -> list[float]:
    """Share of the assignments carried out by each expert, [E], sums to 1.

    Times E it is the ratio of load to ideal load (1 at balance).
    """
    return shares(load_E).tolist()


@metric
def demand(demand_E: Tensor) -> list[float]:
    """Share of the assignments asked of each expert, before any capacity limit, [E], sums to 1."""
    return shares(demand_E).tolist()


@metric
def importance(importance_E: Tensor) -> list[float]:
    """Share of the combine weight of each expert, [E], sums to 1 (arXiv:1701.06538, eq. 6)."""
    return shares(importance_E).tolist()


@metric
def max_vio(load_E: Tensor) -> float:
    """MaxVio_global = max_i load_i / mean load − 1, over all tokens.

    0 at balance, E − 1 at collapse. Loss-free balancing, arXiv:2408.15664.
    """
    return float(load_E.max() / load_E.mean() - 1) if load_E.sum() > 0 else 0.0


@metric
def max_vio_batch(batch_violation: Tensor, n_batches: Tensor) -> float:
    """MaxVio_batch: the MaxVio of each batch, averaged over batches that have any assignment.

    arXiv:2408.15664.
    """
    return float(batch_violation / n_batches.clamp_min(1))


@metric
def cv_load(load_E: Tensor) -> float:
    """Coefficient of variation (population) of the load: 0 at balance, √(E − 1) at collapse.

    Shazeer et al. 2017, arXiv:1701.06538, eq. 6–7 and table 6 (the losses use its square).
    """
    return variation(load_E)


@metric
def cv_importance(importance_E: Tensor) -> float:
    """Coefficient of variation (population) of the combine weight per expert (as `cv_load`)."""
    return variation(importance_E)


@metric
def effective_experts(load_E: Tensor) -> float:
    """exp(H(f)) / E with f the load shares: 1 at balance, 1/E at collapse.

    The perplexity of the load, as in NeMo Automodel's metrics.
    """
    return math.exp(entropy(shares(load_E))) / len(load_E) if load_E.sum() > 0 else 0.0


@metric
def dead_experts(load_E: Tensor) -> float:
    """Share of the experts that carried out no assignment over all tokens."""
    return float((load_E == 0).double().mean()) if load_E.sum() > 0 else 0.0


class Utilisation(Metric):
    """Load over training: which experts starve, and since when.

    Training is cut into intervals; the state is the load of each expert in each interval, so its
    size does not depend on the length of the run.

    - `load_IE`: shares of the load, one row per interval; zeros where the interval saw nothing.
    - `starved_at`: for each expert the first interval in which its share fell below `threshold`
      of the fair one (1/E), or None.
    - `starving`: share of the experts below it in the last interval with a token.

    Args:
        n_experts: E of the layer.
        n_intervals: I.
        threshold: of the fair share; an expert below it is starved.
    """

    full_state_update = False
    load_IE: Tensor

    def __init__(
        self, n_experts: int, n_intervals: int = 100, threshold: float = 0.1, **options: Any
    ) -> None:
        # From the cache, a rank whose expert got no token would skip the sum over ranks.
        super().__init__(compute_with_cache=False, **options)
        self.threshold = threshold
        zeros_IE = torch.zeros(n_intervals, n_experts, dtype=torch.long)
        self.add_state("load_IE", zeros_IE, dist_reduce_fx="sum")

    def update(self, routing: Routing, interval: int) -> None:
        """Args: interval: the part of training that the record is of, 0 … I − 1."""
        self.load_IE[interval] += routing.load_E

    def compute(self) -> dict[str, Any]:
        load_IE = self.load_IE.cpu().double()
        total_I = load_IE.sum(dim=1)
        share_IE = load_IE / total_I.clamp_min(1)[:, None]
        E = share_IE.shape[1]
        intervals = total_I.nonzero().flatten().tolist()
        starved_IE = (share_IE * E < self.threshold).tolist()
        return {
            "load_IE": share_IE.numpy(),
            "starved_at": [
                next((i for i in intervals if starved_IE[i][e]), None) for e in range(E)
            ],
            "starving": sum(starved_IE[intervals[-1]]) / E if intervals else 0.0,
        }
