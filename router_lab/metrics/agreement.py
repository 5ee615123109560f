"""How alike two choices of experts for the same tokens are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from router_lab.metrics.base import selection
from router_lab.routing import Routing


class Agreement(Metric):
    """Mean over tokens of |S ∩ S'| / max(|S|, |S'|), S and S' the token's two sets of experts.

    With a fixed k it is |S ∩ S'| / k; with one that varies, taking an expert away from k costs as
    much as exchanging one of k. Tokens that have no expert in either take no part.
    """

    full_state_update = False
    agreed: Tensor
    tokens: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("agreed", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, routing: Routing | Tensor, other_TE: Tensor) -> None:
        """Args: routing: a record, or its `selection`. other_TE: `selection` of the other record of
        the same tokens, bool."""
        chosen_TE = selection(routing) if isinstance(routing, Routing) else routing
        larger_T = torch.maximum(chosen_TE.sum(dim=1), other_TE.sum(dim=1))
        both_T = (chosen_TE & other_TE).sum(dim=1)
        self.agreed = self.agreed + (both_T / larger_T.clamp_min(1)).sum()
        self.tokens = self.tokens + (larger_T > 0).sum()

    def compute(self) -> float:
        return float(self.agreed / self.tokens.clamp_min(1))
