from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from router_lab.routing import Routing


class Utilisation(Metric):
    """Load over training: who starves, and when.

    Training is cut into intervals; the state is the load of each expert in each of them, so it
    stays the same size however long the run is.

    - `load_IE`: shares of the load, a row an interval; zeros where the interval saw nothing.
    - `starved_at`: for each expert the first interval in which its share fell under `threshold`
      of the fair one (1/E), or None.
    - `starving`: share of the experts under it in the last interval seen.

    Args:
        n_experts: E of the layer.
        n_intervals: I.
        threshold: of the fair share; under it an expert counts as starved.
    """

    full_state_update = False
    taken_IE: Tensor

    def __init__(
        self, n_experts: int, n_intervals: int = 100, threshold: float = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.threshold = threshold
        zeros_IE = torch.zeros(n_intervals, n_experts, dtype=torch.long)
        self.add_state("taken_IE", zeros_IE, dist_reduce_fx="sum")

    def update(self, routing: Routing, interval: int) -> None:
        """Args: interval: the part of training that the record is of, 0 … I − 1."""
        self.taken_IE[interval] += routing.load_E

    def compute(self) -> dict[str, Any]:
        taken_IE = self.taken_IE.cpu().double()
        total_I = taken_IE.sum(dim=1)
        load_IE = taken_IE / total_I.clamp_min(1)[:, None]
        E = load_IE.shape[1]
        seen = total_I.nonzero().flatten().tolist()
        starved_IE = (load_IE * E < self.threshold).tolist()
        return {
            "load_IE": load_IE.numpy(),
            "starved_at": [next((i for i in seen if starved_IE[i][e]), None) for e in range(E)],
            "starving": sum(starved_IE[seen[-1]]) / E if seen else 0.0,
        }
