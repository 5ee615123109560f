"""Quantile balancing: a bias set in one step to what would have balanced the last batch."""

from typing import Annotated

import torch
from torch import Tensor, nn

from router_lab.check import BELOW_1
from router_lab.registry import register
from router_lab.routers._selection import Score, chosen_weights, distribution, scored
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


@register("quantile_balancing")
class QuantileBalancing(Router):
    """S = top-k(z − β), z = x W; w = p_S / Σ p_S · scale with p = softmax(z) or σ(z). No loss.

    β solves the dual of the balanced assignment by one round of coordinate descent a step:
        α_t = the (k+1)-th largest of z_ti − β_i over the experts i;
        q_i = the (kT/E + 1)-th largest of z_ti − α_t over the tokens t of a micro-batch;
        β ← ema · β + (1 − ema) · mean of q over micro-batches and ranks, minus its own mean.
    A fractional kT/E is rounded down (Megatron-LM refuses it).

    Args:
        k: experts per token.
        score: what the weights are made of, `softmax`, `sigmoid` or `sqrtsoftplus`.
        norm_topk_prob: divide the k weights by their sum.
        scale: of the weights.
        ema: weight of the old β.
        centre: subtract from β its mean.
    """

    paper = "Su Jianlin, Feb 2026, kexue.fm/archives/11619"
    reference = "Megatron-LM's rule as sorts in loops; scipy's linear program of the assignment"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        score: Score = "softmax",
        norm_topk_prob: bool = True,
        scale: float = 1.0,
        ema: Annotated[float, BELOW_1] = 0.0,
        centre: bool = True,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        self.score = score
        self.norm_topk_prob = norm_topk_prob
        self.scale = scale
        self.ema = ema
        self.centre = centre
        self.gate = Gate(d_model, n_experts)
        self.beta_E: Tensor = nn.Buffer(torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        score_TE = scored(logits_TE, self.score)
        beta_E = self.beta_E.float()
        index_TK = (logits_TE.detach() - beta_E).topk(self.k, dim=-1).indices
        stats = {}
        if self.training and self.k < self.n_experts and len(x_TD) > 0:
            quantile_E = balancing_quantile(logits_TE.detach(), beta_E, self.k)
            stats = {"quantile_E": quantile_E, "batches": torch.ones_like(quantile_E)}
        weight_TK = chosen_weights(score_TE, index_TK, self.norm_topk_prob, self.scale)
        probs_TE = distribution(score_TE)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, stats=stats)

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        if "quantile_E" not in totals.stats:
            return
        mean_E = totals.stats["quantile_E"] / totals.stats["batches"]
        beta_E = self.ema * self.beta_E + (1 - self.ema) * mean_E
        self.beta_E.copy_(beta_E - beta_E.mean() if self.centre else beta_E)


def balancing_quantile(z_TE: Tensor, beta_E: Tensor, k: int) -> Tensor:
    """The bias that gives each expert its kT/E tokens while the tokens' thresholds α stay [E]."""
    T, E = z_TE.shape
    alpha_T1 = (z_TE - beta_E).topk(k + 1, dim=-1).values[:, k:]
    return (z_TE - alpha_T1).topk(T * k // E + 1, dim=0).values[-1]
