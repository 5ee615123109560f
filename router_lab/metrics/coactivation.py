"""Which experts a token has together, over all pairs (not only neighbours in rank).

N_ij counts the tokens that have both i and j, N_i those that have i. OLMoE, arXiv:2409.02060,
section 5.2, whose published code looks at neighbours in rank only: 7 of the 28 pairs at k = 8.
"""

from __future__ import annotations

import numpy as np

from router_lab.metrics.base import SumMetric, Sums


class CoActivationMatrix(SumMetric):
    """N_ij / N_i [E, E]: of the tokens of expert i, the share that has j as well.

    The diagonal is 1, or 0 for an expert without tokens. A row sums to the mean number of experts
    of the tokens of i.
    """

    sums = ("pairs_EE",)

    @classmethod
    def value(cls, sums: Sums) -> np.ndarray:
        pairs_EE = sums["pairs_EE"]
        return (pairs_EE / pairs_EE.diagonal().clamp_min(1)[:, None]).numpy()


class CoActivation(SumMetric):
    """Σ_i N_i max_{j ≠ i} N_ij/N_i / Σ_i N_i: how often an expert meets its most frequent partner.

    1 where experts come in fixed groups, so that choosing one chooses the other; (k − 1)/(E − 1)
    where the choices are even and independent; 0 for k = 1.
    """

    sums = ("pairs_EE",)

    @classmethod
    def value(cls, sums: Sums) -> float:
        pairs_EE = sums["pairs_EE"]
        single_E = pairs_EE.diagonal()
        partner_E = (pairs_EE - single_E.diag()).amax(dim=1)
        return float(partner_E.sum() / single_E.sum().clamp_min(1))
