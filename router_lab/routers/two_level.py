"""A hierarchical router in one layer: groups first, then experts within each group."""

from torch import Tensor

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, refused


@register("two_level")
class TwoLevel(Router):
    """w_ij = g_i g_j|i: top-k of the groups, then top-k of the experts in each of them.

    P_i = softmax(x W) over groups, P_j|i = softmax(x W_i) within group i. With renormalising, g is
    the softmax over the chosen at both levels, as in the paper; without, g = P. The record's
    probability of an expert is P_i P_j|i, its logit the sum of the two.

    The experts stand group by group. For the other hierarchy, an expert that is itself a mixture,
    see ffn=hierarchical.

    Args:
        k: experts per token: k_groups groups, and k / k_groups experts in each.
        n_groups: groups of equal size.
        k_groups: groups per token.
        norm_topk_prob: whether the weights of the chosen sum to 1 at both levels.
    """

    paper = "Shazeer et al. 2017, arXiv:1701.06538, appendix B, eq. 12 (without its noise)"
    reference = "golden outputs of lucidrains' gates; a loop over tokens, groups and experts"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 4,
        n_groups: int = 4,
        k_groups: int = 2,
        norm_topk_prob: bool = True,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        if n_groups < 1 or n_experts % n_groups:
            raise refused(self, "n_groups", n_groups, f"a divisor of n_experts={n_experts}")
        if not 1 <= k_groups <= n_groups or k % k_groups:
            right = f"a divisor of k={k}, and at most n_groups={n_groups}"
            raise refused(self, "k_groups", k_groups, right)
        size, k_inner = n_experts // n_groups, k // k_groups
        if k_inner > size:
            raise refused(self, "k", k, f"at most k_groups · {size}, the experts of a group")
        no_gradient = (k_groups == 1 < n_groups) or (k_inner == 1 < size)
        if norm_topk_prob and no_gradient:
            right = "false where one group, or one expert of a group, is chosen: its renormalised "
            raise refused(self, "norm_topk_prob", True, right + "weight is always 1, no gradient")
        self.n_groups, self.k_groups, self.k_inner = n_groups, k_groups, k_inner
        self.norm_topk_prob = norm_topk_prob
        self.group_gate = Gate(d_model, n_groups)
        self.expert_gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        z_TG = self.group_gate(x_TD)
        z_TGN = self.expert_gate(x_TD).unflatten(1, (self.n_groups, -1))
        probs_TG, probs_TGN = z_TG.softmax(dim=-1), z_TGN.softmax(dim=-1)
        w_TH, group_TH = probs_TG.topk(self.k_groups, dim=-1)
        in_group_THN = group_TH[..., None].expand(-1, -1, z_TGN.shape[-1])
        w_THJ, inner_THJ = probs_TGN.gather(1, in_group_THN).topk(self.k_inner, dim=-1)
        if self.norm_topk_prob:
            w_TH = w_TH / w_TH.sum(dim=-1, keepdim=True)
            w_THJ = w_THJ / w_THJ.sum(dim=-1, keepdim=True)
        index_TK = (group_TH[..., None] * z_TGN.shape[-1] + inner_THJ).flatten(1)
        weight_TK = (w_TH[..., None] * w_THJ).flatten(1)
        weight_TK, order_TK = weight_TK.sort(descending=True, stable=True)
        logits_TE = (z_TG[..., None] + z_TGN).flatten(1)
        probs_TE = (probs_TG[..., None] * probs_TGN).flatten(1)
        return Routing.from_topk(index_TK.gather(1, order_TK), weight_TK, logits_TE, probs_TE)
