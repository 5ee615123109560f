"""V-MoE: noisy gating with losses of its own and batch-prioritised routing."""

import torch
from torch import Tensor

from router_lab.capacity import Capacity, Factor, Order, Scope
from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, squared_cv


@register("vmoe")
class VMoE(Router):
    """w = the k largest of softmax(x W + ε), ε ~ N(0, (noise / E)²) in training, 0 otherwise.

    Its own losses: w_importance · CV²(Σ_t softmax(x W)), and w_load · CV²(Σ_t P_ti),
    P_ti = Φ((x W − θ_t) / σ) with θ_t the k-th largest noisy logit, the expert itself included.
    An expert carries out ceil(factor · k · T / E), the tokens of largest weight first.

    Differences from the release: it rounds an expert's room up to a multiple of 4,
    and has no load loss in evaluation.

    Args:
        k: experts per token.
        noise: σ times the number of experts.
        w_importance: weight of the importance loss (the paper's λ = 0.01, half for each loss).
        w_load: weight of the load loss.
        factor: room of an expert over its load at perfect balance, in training.
        eval_factor: the same in evaluation. null: the same as in training, as in the released
            configurations, which have one capacity_factor for both.
        order: `priority` for batch-prioritised routing (or see the router `capacity`).
        scope: tokens that share the room: the micro-batch, or each sequence (image) for itself.
    """

    paper = "V-MoE, Riquelme et al. 2021, arXiv:2106.05974, eq. 1, section 4, appendix A.2"
    reference = "golden outputs of google-research/vmoe; the same as a loop"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        noise: Amount = 1.0,
        w_importance: Amount = 0.005,
        w_load: Amount = 0.005,
        factor: Factor = 1.05,
        eval_factor: Factor | None = None,
        order: Order = "priority",
        scope: Scope = "batch",
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.capacity = Capacity(factor, order, scope, eval_factor=eval_factor)
        self.sigma = noise / n_experts
        self.w_importance = w_importance
        self.w_load = w_load
        self.own_losses = {"importance": w_importance, "load": w_load if noise else 0.0}
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        importance = squared_cv(logits_TE.softmax(dim=-1).sum(dim=0))
        losses = {"importance": self.w_importance * importance}
        noisy = self.training and self.sigma > 0
        noisy_TE = logits_TE + self.sigma * context.normal(self.n_experts) if noisy else logits_TE
        probs_TE = noisy_TE.softmax(dim=-1)
        top_TK, index_TK = noisy_TE.topk(self.k, dim=-1)
        if self.sigma > 0:
            chosen_TE = torch.special.ndtr((logits_TE - top_TK[:, -1:]) / self.sigma)
            losses["load"] = self.w_load * squared_cv(chosen_TE.sum(dim=0))
        weight_TK = probs_TE.gather(1, index_TK)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, losses=losses)
