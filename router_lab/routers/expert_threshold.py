"""Expert threshold: expert choice without look-ahead, by a threshold kept from earlier batches."""

from typing import Annotated

import torch
from torch import Tensor, nn

from router_lab.check import BELOW_1, at_least
from router_lab.registry import register
from router_lab.routers._selection import distribution
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


@register("expert_threshold")
class ExpertThreshold(Router):
    """Expert i takes every token with z_ti ≥ c_i, z = x W; w = σ(z), not normalised. No loss.

    c_i is the moving average of the threshold that gives expert i its share of a batch, the
    (kT/E)-th largest z_ti over the tokens: c ← β c + (1 − β) · (mean over the micro-batches of a
    step), corrected for its start at 0. The first step therefore routes by the sign of z. A token
    gets any number of experts, possibly none: the paper adds a shared expert (`ffn.n_shared=1`).

    Differences from the release: with a shared expert it aims at about one routed expert fewer per
    token, so that the shared one counts among the k.

    Args:
        k: experts per token on average.
        beta: decay of the average. The paper's 0.999 is for 20 000 steps; in short runs, where the
            gate moves faster, the average lags behind and k is missed: take 0.9 or 0.99.
        warmup: optimiser steps in which the batch itself sets c (expert choice), 4000 in the paper.
            Training then looks ahead; evaluation does not.
    """

    paper = "Sun et al. 2026, arXiv:2603.11535, algorithm 1"
    reference = "golden outputs of MasterGodzilla/Expert-Threshold-Routing; sorts in loops"
    fixed_k = False

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: float = 2.0,
        beta: Annotated[float, BELOW_1] = 0.999,
        warmup: Annotated[int, at_least(0)] = 0,
    ) -> None:
        super().__init__(d_model, n_experts, min(k, n_experts))
        self.beta = beta
        self.warmup = warmup
        self.lookahead = "in training" if warmup else "never"
        self.gate = Gate(d_model, n_experts)
        self.threshold_E: Tensor = nn.Buffer(torch.zeros(n_experts))
        self.updates: Tensor = nn.Buffer(torch.zeros((), dtype=torch.long))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        threshold_E, stats = self.threshold_E.float(), {}
        if self.training and len(x_TD) > 0:
            share = max(int(len(x_TD) * self.mean_k / self.n_experts), 1)
            cutoff_E = logits_TE.detach().topk(share, dim=0).values[-1]
            stats = {"cutoff_E": cutoff_E, "batches": torch.ones_like(cutoff_E)}
            if context.step < self.warmup:
                threshold_E = cutoff_E
        score_TE = logits_TE.sigmoid()
        mask_TE, probs_TE = logits_TE >= threshold_E, distribution(score_TE)
        return Routing.from_mask(mask_TE, score_TE, logits_TE, probs_TE, stats=stats)

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        if "cutoff_E" not in totals.stats:
            return
        self.updates += 1
        new = (1 - self.beta) / (1 - self.beta ** int(self.updates))  # 1 for the first of them
        mean_E = totals.stats["cutoff_E"] / totals.stats["batches"]
        self.threshold_E += new * (mean_E - self.threshold_E)
