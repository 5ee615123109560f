"""Sinkhorn: in training the top-k of a transport plan with equal load, instead of the scores."""

import math
from typing import Annotated

import torch
from torch import Tensor

from router_lab.check import ABOVE_0, Count
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("sinkhorn")
class Sinkhorn(Router):
    """Training: the k largest of π in each row; evaluation: of z = x W.

    π_ti = u_t exp(z_ti) v_i, where u and v make each row of π sum to 1 / T, each column to 1 / E.
    No gradient passes through it. The weight is σ(z) for k = 1, softmax(z) for k > 1, not
    renormalised. The plan replaces the balance losses. It reads the whole batch, in training only.

    Args:
        k: experts per token.
        tolerance: the iteration ends when the mean change of log v falls below it.
        max_iterations: or after this many rounds.
    """

    paper = "S-BASE, Clark et al. 2022, arXiv:2202.01169, section 3.1 and appendix B"
    reference = "golden outputs of Megatron-LM; scaling of exp(z) in float64"
    lookahead = "in training"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 1,
        tolerance: Annotated[float, ABOVE_0] = 1e-4,
        max_iterations: Count = 100,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        score_TE = logits_TE.sigmoid() if self.k == 1 else logits_TE.softmax(dim=-1)
        ranking_TE = self.log_plan(logits_TE.detach()) if self.training else logits_TE
        index_TK = ranking_TE.topk(self.k, dim=-1).indices
        weight_TK = score_TE.gather(1, index_TK)
        probs_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)

    def log_plan(self, logits_TE: Tensor) -> Tensor:
        """log π."""
        T, E = logits_TE.shape
        v_E = logits_TE.new_zeros(E)
        for _ in range(self.max_iterations):
            u_T1 = -torch.logsumexp(logits_TE + v_E, dim=1, keepdim=True) - math.log(max(T, 1))
            last_E, v_E = v_E, -torch.logsumexp(logits_TE + u_T1, dim=0) - math.log(E)
            if (v_E - last_E).abs().mean() < self.tolerance:
                break
        return logits_TE + u_T1 + v_E
