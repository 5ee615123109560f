"""Noisy top-k gating: the router of the first sparsely gated MoE."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, squared_cv


@register("noisy_topk")
class NoisyTopK(Router):
    """w = softmax(top-k H), H = x W_g + ε · softplus(x W_n), ε ~ N(0, 1) in training, 0 otherwise.

    Its own losses: w_importance · CV²(Σ_t w_ti), and w_load · CV²(Σ_t P_ti) with the smooth load
    P_ti = Φ((x W_g − θ_ti) / softplus(x W_n)), the probability that expert i would be chosen again
    under fresh noise; θ_ti is the k-th largest H of token t without expert i. Both weights start at
    0, so that all experts are equally likely.

    Differences from the release: fastmoe adds 0.01 to the scale of the noise, and its CV² has the
    variance of a sample (E − 1).

    Args:
        k: experts per token.
        w_importance: weight of the importance loss.
        w_load: weight of the load loss.
    """

    paper = "Shazeer et al. 2017, arXiv:1701.06538, eq. 3–11 and appendix A"
    reference = "golden outputs of fastmoe; a loop; a Monte Carlo estimate of the load"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        w_importance: Amount = 0.1,
        w_load: Amount = 0.1,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.refuse_constant_weight("set router.k=2, or take router=switch")
        self.w_importance = w_importance
        self.w_load = w_load
        self.own_losses = {"importance": w_importance, "load": w_load}
        self.gate = Gate(d_model, n_experts)
        self.noise = Gate(d_model, n_experts)
        torch.nn.init.zeros_(self.gate.weight)
        torch.nn.init.zeros_(self.noise.weight)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        noisy_TE, smooth_E = logits_TE, None
        if self.training:
            # The floor keeps the gradient of Φ finite where softplus has vanished.
            scale_TE = F.softplus(self.noise(x_TD)).clamp_min(1e-6)
            noisy_TE = logits_TE + scale_TE * context.normal(self.n_experts)
            smooth_E = smooth_load(logits_TE, noisy_TE, scale_TE, self.k)
        top_TK, index_TK = noisy_TE.topk(self.k, dim=-1)
        weight_TK, probs_TE = top_TK.softmax(dim=-1), logits_TE.softmax(dim=-1)
        routing = Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
        if smooth_E is None:
            smooth_E = routing.demand_E.float()
        losses = {
            "importance": self.w_importance * squared_cv(routing.importance_E),
            "load": self.w_load * squared_cv(smooth_E),
        }
        return replace(routing, losses=losses)


def smooth_load(logits_TE: Tensor, noisy_TE: Tensor, scale_TE: Tensor, k: int) -> Tensor:
    """Expected load of each expert when its own noise is drawn again [E]."""
    T, E = logits_TE.shape
    if k == E:
        return logits_TE.new_full((E,), float(T))
    top_TK = noisy_TE.topk(k + 1, dim=-1).values
    kth_T1, next_T1 = top_TK[:, k - 1 : k], top_TK[:, k:]
    # Without expert i, what was (k + 1)-th is k-th where i itself is among the first k.
    threshold_TE = torch.where(noisy_TE > next_T1, next_T1, kth_T1)
    load_E: Tensor = torch.special.ndtr((logits_TE - threshold_TE) / scale_TE).sum(dim=0)
    return load_E
