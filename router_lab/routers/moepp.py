"""MoE++: a router for layers with zero, copy and constant experts, aware of its last choice."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from router_lab.capacity import Capacity, Factor
from router_lab.check import ABOVE_0
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("moepp")
class MoEPlusPlus(Router):
    """z_l = x W + z_{l−1} G, S = top-k of softmax(z), w = softmax(z)_S: gating residuals.

    z_{l−1} are the scores of the routed layer below (none in the first). Feed-forward experts
    should get τ times the load of special ones: the load-balance loss and the capacity have these
    target shares b_i in place of 1/E. At the target a token has k τ N / (τ N + Z) feed-forward
    experts.

    See ffn=moepp for a layer with the paper's experts (special: {zero: 1, copy: 1, constant: 2}).

    Differences from the release: its gate has two layers with a tanh between them, it multiplies
    the experts' inputs by k, and it divides the weights by their sum without the zero expert's. Its
    code has neither the balance loss nor the capacity.

    Differences from the paper: eq. 8 shares out γ T, with T the tokens; we share out γ k T, the
    assignments. With γ T and the paper's γ = 1.1, k = 2, all experts together would have room for
    55 % of the assignments at perfect balance.

    Args:
        k: experts per token.
        tau: τ.
        capacity_factor: γ of the expert capacity in training; null: no limit.
        eval_factor: the same in evaluation. inf: no limit, as in the released code, which only
            evaluates.
        norm_topk_prob: divide the k weights by their sum.
    """

    paper = "MoE++, Jin et al. 2024, arXiv:2410.07348, eq. 1 and 6–8"
    reference = "golden outputs of SkyworkAI/MoE-plus-plus; loops; eq. 8 by hand"
    default_losses = {"load_balance": {"coef": 0.01, "tau": 0.75}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        tau: Annotated[float, ABOVE_0] = 0.75,
        capacity_factor: Factor | None = None,
        eval_factor: Factor | None = math.inf,
        norm_topk_prob: bool = False,
        kinds: Sequence[str] | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        n_ffn = list(kinds or ["ffn"] * n_experts).count("ffn")
        self.k_ffn = k * tau * n_ffn / (tau * n_ffn + n_experts - n_ffn)
        self.default_losses = {"load_balance": {"coef": 0.01, "tau": tau}}
        if capacity_factor is not None:
            self.capacity = Capacity(capacity_factor, tau=tau, eval_factor=eval_factor)
        self.norm_topk_prob = norm_topk_prob
        self.gate = Gate(d_model, n_experts)
        self.residual = Gate(n_experts, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        if context.previous is not None:
            below_TE = context.previous.logits_TE
        else:  # zeros, so that G of the first layer has a gradient too: DDP requires one
            below_TE = torch.zeros_like(logits_TE)
        logits_TE = logits_TE + self.residual(below_TE)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
