"""Cosine routing: the angle between token and expert in a small space."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.check import Count, at_least
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("cosine")
class Cosine(Router):
    """z_i = cos(W x, e_i) / τ, S = top-k of z, w = softmax(z)_S, renormalised or not.

    W projects to `proj_dim`, the e_i are learned there, and so is τ (as log 1/τ, τ ≥ 0.01). On the
    hypersphere the experts cannot pull the tokens' vectors to a few points, as a product would.

    Differences from the release: Tutel's projector has a bias.

    Args:
        k: experts per token; 1 in the paper.
        proj_dim: width of the projection. null: 256 (Tutel), or D / 2 where that is less.
        temperature: τ at the start.
        norm_topk_prob: divide the k weights by their sum (Tutel: yes, for k > 1).
    """

    paper = "XMoE, Chi et al. 2022, arXiv:2204.09179, section 3; Tutel's cosine gate"
    reference = "golden outputs of Tutel's gate; its formula as a loop"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 1,
        proj_dim: Count | None = None,
        temperature: Annotated[float, at_least(0.01)] = 0.5,
        norm_topk_prob: bool = False,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        proj_dim = proj_dim or min(256, max(d_model // 2, 1))
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        self.norm_topk_prob = norm_topk_prob
        self.project = Gate(d_model, proj_dim)
        self.expert_EP = nn.Parameter(torch.randn(n_experts, proj_dim) * proj_dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        token_TP = F.normalize(self.project(x_TD), dim=-1)
        with torch.autocast(x_TD.device.type, enabled=False):
            cosine_TE = F.linear(token_TP, F.normalize(self.expert_EP.float(), dim=-1))
        logits_TE = cosine_TE * self.log_scale.clamp_max(math.log(100.0)).exp()
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
