"""Balance without a loss: a bias that only the selection sees. DeepSeek-V3's router."""

from typing import Literal

import torch
from torch import Tensor, nn

from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routers._selection import (
    GroupScore,
    Score,
    check_groups,
    chosen_weights,
    distribution,
    limit_to_groups,
    scored,
)
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


@register("loss_free")
class LossFree(Router):
    """S = top-k(s + b), s = σ(x W); w = s_S / Σ s_S · scale. After a step b += u · sign(c̄ − c).

    c is the demand of the step over all micro-batches and ranks, c̄ its mean over the experts. The
    bias has no gradient and does not touch the weights. DeepSeek-V3 is `k=8 n_groups=8
    topk_groups=4 scale=2.5` with the loss `{load_balance: {coef: 1e-4, scope: sequence}}` of its
    eq. 17–20, except that f in eq. 18 counts the top-k of s without bias or groups, and ours the
    experts that were chosen.

    Args:
        k: experts per token.
        score: `sigmoid` (both papers' choice), `softmax`, or `sqrtsoftplus` (DeepSeek-V4).
        norm_topk_prob: divide the k weights by their sum.
        scale: of the weights (DeepSeek-V3: routed_scaling_factor).
        update: `sign`, or `error`: b += u · (c̄ − c) / c̄, whatever the batch size.
        u: speed of the bias.
        centre: subtract its mean from each change, as torchtitan does.
        n_groups: groups of experts of which a token may use only some; 1 for no limit.
        topk_groups: groups that a token may use.
        group_score: what ranks the groups: the largest s + b (`max`), the sum of its two largest
            (`top2`, DeepSeek-V3) or of its k // topk_groups largest (`topk`, Megatron-LM).
    """

    paper = "Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437, eq. 12–16"
    reference = "transformers: DeepSeek-V3 and V4; a loop over experts for the update"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        score: Score = "sigmoid",
        norm_topk_prob: bool = True,
        scale: float = 1.0,
        update: Literal["sign", "error"] = "sign",
        u: Amount = 1e-3,
        centre: bool = False,
        n_groups: int = 1,
        topk_groups: int = 1,
        group_score: GroupScore = "top2",
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        check_groups(self, k, n_groups, topk_groups, group_score)
        self.score = score
        self.norm_topk_prob = norm_topk_prob
        self.scale = scale
        self.update = update
        self.u = u
        self.centre = centre
        self.groups = (n_groups, topk_groups, group_score)
        self.gate = Gate(d_model, n_experts)
        self.bias_E: Tensor = nn.Buffer(torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        score_TE = scored(logits_TE, self.score)
        biased_TE = score_TE.detach() + self.bias_E.float()
        limited_TE = limit_to_groups(biased_TE, *self.groups, self.k)
        index_TK = limited_TE.topk(self.k, dim=-1).indices
        weight_TK = chosen_weights(score_TE, index_TK, self.norm_topk_prob, self.scale)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, distribution(score_TE))

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        mean = demand_E.float().mean()
        missing_E = mean - demand_E.float()
        change_E = missing_E.sign() if self.update == "sign" else missing_E / mean.clamp_min(1e-20)
        if self.centre:
            change_E = change_E - change_E.mean()
        self.bias_E += self.u * change_E
