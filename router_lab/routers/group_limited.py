"""Top-k within a few groups of experts: DeepSeek-V2's device-limited routing."""

from torch import Tensor

from router_lab.registry import register
from router_lab.routers._selection import GroupScore, check_groups, chosen_weights, limit_to_groups
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("group_limited")
class GroupLimited(Router):
    """w = softmax(z) · scale on the k largest among the experts of the token's best groups.

    Experts are in groups of equal size (one per device); those in other groups get the score −∞.
    DeepSeek-V2 is `k=6 n_groups=8 topk_groups=3 scale=16`. For DeepSeek-V3's sigmoid and bias see
    `loss_free`, which has the same options.

    Differences from the paper: DeepSeek-V2's balance losses over devices (eq. 26–28) and over their
    communication (eq. 29–31) are left out.

    Args:
        k: experts per token.
        n_groups: groups of experts.
        topk_groups: groups that a token may use.
        group_score: what ranks the groups: their largest score (`max`, DeepSeek-V2), the sum of the
            two largest (`top2`, DeepSeek-V3) or of the k // topk_groups largest (`topk`,
            Megatron-LM).
        norm_topk_prob: divide the k weights by their sum.
        scale: of the weights (routed_scaling_factor).
    """

    paper = "DeepSeek-V2, arXiv:2405.04434, section 2.2.2; its balance loss eq. 23–25"
    reference = "transformers: DeepSeek-V2; a loop over tokens and groups"
    default_losses = {"load_balance": {"coef": 0.003, "scope": "sequence"}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        n_groups: int = 4,
        topk_groups: int = 2,
        group_score: GroupScore = "max",
        norm_topk_prob: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        check_groups(self, k, n_groups, topk_groups, group_score)
        self.groups = (n_groups, topk_groups, group_score)
        self.norm_topk_prob = norm_topk_prob
        self.scale = scale
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        limited_TE = limit_to_groups(probs_TE.detach(), *self.groups, self.k)
        index_TK = limited_TE.topk(self.k, dim=-1).indices
        weight_TK = chosen_weights(probs_TE, index_TK, self.norm_topk_prob, self.scale)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
