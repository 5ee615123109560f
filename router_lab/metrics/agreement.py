"""Agreement: of experts within a token, and of two choices for the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from router_lab.metrics.metric import MeanMetric, metric
from router_lab.metrics.records import selection
from router_lab.routing import Routing


@metric
def coactivation(pairs_EE: Tensor) -> float:
    """Σ_i N_i max_{j ≠ i} N_ij/N_i / Σ_i N_i: how often an expert meets its most frequent partner.

    N_ij counts the tokens that have both i and j, N_i those that have i. 1 where experts come in
    fixed groups, so that choosing one chooses the other; (k − 1)/(E − 1) where the choices are even
    and independent; 0 for k = 1. OLMoE, arXiv:2409.02060, section 5.2; its published code looks at
    neighbours in rank only, 7 of the 28 pairs at k = 8.
    """
    single_E = pairs_EE.diagonal()
    partner_E = (pairs_EE - single_E.diag()).amax(dim=1)
    return float(partner_E.sum() / single_E.sum().clamp_min(1))


@metric
def coactivation_EE(pairs_EE: Tensor) -> np.ndarray:
    """N_ij / N_i [E, E]: of the tokens of expert i, the share that has j as well.

    The diagonal is 1, or 0 for an expert without tokens. A row sums to the mean number of experts
    of the tokens of i.
    """
    return (pairs_EE / pairs_EE.diagonal().clamp_min(1)[:, None]).numpy()


class Agreement(MeanMetric):
    """Mean over tokens of |S ∩ S'| / max(|S|, |S'|), S and S' two sets of experts of the token.

    With a fixed k it is |S ∩ S'| / k; with a varying k, removing one of k experts costs as much as
    exchanging it. Tokens without an expert in both are left out; 1 where no token is left.

    - churn: one minus the agreement with the previous validation, on the same batch. Our own.
    - saturation: agreement with the final choice, by validation. OLMoE, arXiv:2409.02060, 5.1.
    - layer overlap: agreement with the layer below. Expert numbers mean nothing across layers
      unless the routers share something (ZAYA's or MoE++'s state; experts in common): chance is
      k/E. As in LibMoE, after Csordás et al. 2023.
    """

    def update(self, routing: Routing | Tensor, other_TE: Tensor) -> None:
        """Args: routing: a record, or its `selection`. other_TE: `selection` of the other record of
        the same tokens, bool."""
        chosen_TE = selection(routing) if isinstance(routing, Routing) else routing
        larger_T = torch.maximum(chosen_TE.sum(dim=1), other_TE.sum(dim=1))
        both_T = (chosen_TE & other_TE).sum(dim=1)
        self.add((both_T / larger_T.clamp_min(1)).sum(), (larger_T > 0).sum())

    def compute(self) -> Any:
        return super().compute() if self.weight > 0 else 1.0


def agreement(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The agreement over pairs of selections, and over all ranks."""
    total = Agreement()
    for chosen_TE, other_TE in pairs:
        total.update(chosen_TE, other_TE)
    return float(total.compute())
