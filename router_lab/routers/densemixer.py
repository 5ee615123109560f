"""DenseMixer: the router's gradient sees all experts, the output only the selected ones."""

import torch
from torch import Tensor

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("densemixer")
class DenseMixer(Router):
    """p = softmax(z), S = top-k, w = p_S over N = Σ_S p, or p_S. Backward as if y = Σ_i w_i E_i(x).

    That is straight-through: in training the layer computes every expert for every token, and an
    expert not chosen counts 0 in y, while its weight p_i / N (N held constant, as in the released
    code) has its gradient ∂L/∂y · E_i(x). Experts and input get no gradient from it, and no load.
    So training costs E / k times the expert FLOPs. An expert that routes again sees every token in
    training, and its own record says so.

    Args:
        k: experts per token.
        norm_topk_prob: divide the k weights by their sum (Qwen3: yes; OLMoE: no).
    """

    paper = "DenseMixer, Yao et al. 2025 (yaof20/DenseMixer): no arXiv number"
    reference = "golden outputs of yaof20/DenseMixer; the gradient of the dense sum"
    runs_all = True
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self, d_model: int, n_experts: int, k: int = 2, norm_topk_prob: bool = True
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.norm_topk_prob = norm_topk_prob
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        sum_T1 = torch.ones_like(weight_TK[:, :1])
        if self.norm_topk_prob:
            sum_T1 = weight_TK.sum(dim=-1, keepdim=True)
        ghost_TE = None
        if self.training:
            full_TE = probs_TE / sum_T1.detach()
            ghost_TE = full_TE - full_TE.detach()
        weight_TK = weight_TK / sum_T1
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, ghost_TE=ghost_TE)
