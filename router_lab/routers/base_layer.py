"""BASE: in training every expert gets the same number of tokens, assigned for the largest score."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from router_lab.check import ABOVE_0
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("base_layer")
class BaseLayer(Router):
    """Training: the assignment of largest Σ z with at most ceil(T / E) tokens per expert, z = x C.
    Evaluation: argmax z. One expert per token; y = α E(x) + (1 − α) x, α = σ(z of the expert).

    Equal load by construction, so there is no balance loss. In training, and only there, an
    assignment depends on the whole batch.

    Args:
        residual: whether (1 − α) x is part of the output. The paper's expert is a block with a
            residual of its own, x + f(norm x), so that its layer is x + α f(norm x): the block of a
            pre-norm transformer with residual=false.
        epsilon: step of the auction over the range of z; the sum is within T steps of the largest.
    """

    paper = "Lewis et al. 2021, arXiv:2103.16716, section 3"
    reference = "scipy's linear_sum_assignment, and a worked example"
    lookahead = "in training"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        residual: bool = True,
        epsilon: Annotated[float, ABOVE_0] = 0.02,
    ) -> None:
        super().__init__(d_model, n_experts, k=1)
        self.keeps_rest = residual
        self.epsilon = epsilon
        self.gate = Gate(d_model, n_experts)
        nn.init.orthogonal_(self.gate.weight, gain=0.1)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        if self.training:
            index_T = balanced_assignment(logits_TE.detach(), self.epsilon)
        else:
            index_T = logits_TE.argmax(dim=-1)
        index_T1 = index_T[:, None]
        alpha_T1 = logits_TE.gather(1, index_T1).sigmoid()
        return Routing.from_topk(index_T1, alpha_T1, logits_TE, logits_TE.softmax(dim=-1))


def balanced_assignment(score_TE: Tensor, epsilon: float) -> Tensor:
    """An expert for each token, at most ceil(T / E) tokens per expert; long [T].

    Bertsekas's auction: each token without a seat bids for the expert it gains most from, by as
    much as it gains over the second best, and a step more; each expert seats its highest bidders
    and asks the lowest of these bids of the next.

    Args:
        epsilon: the step over the range of the scores. The sum of the scores falls short of the
            largest by at most T steps.
    """
    T, E = score_TE.shape
    if T == 0 or E == 1:
        return score_TE.new_zeros(T, dtype=torch.long)
    score_TE = score_TE.double().where(score_TE.isfinite(), 0.0)
    seats = math.ceil(T / E)
    step = epsilon * (score_TE.max() - score_TE.min()).item() or 1.0  # any step, if all are equal
    price_E = score_TE.new_zeros(E)
    bid_TE = torch.full_like(score_TE, -torch.inf)
    free_A = torch.arange(T, device=score_TE.device)
    while len(free_A) > 0:
        gain_A2, best_A2 = (score_TE[free_A] - price_E).topk(2, dim=1)
        best_A = best_A2[:, 0]
        bid_TE[free_A, best_A] = price_E[best_A] + gain_A2[:, 0] - gain_A2[:, 1] + step
        highest = bid_TE.topk(seats, dim=0)
        price_E = highest.values[-1].clamp_min(0)  # 0 if a seat is free
        seated_TE = torch.zeros_like(bid_TE, dtype=torch.bool)
        seated_TE.scatter_(0, highest.indices, highest.values > -torch.inf)
        bid_TE = bid_TE.masked_fill(~seated_TE, -torch.inf)
        free_A = (~seated_TE.any(dim=1)).nonzero().squeeze(1)
    return bid_TE.argmax(dim=1)
