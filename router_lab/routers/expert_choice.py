"""Expert choice: experts select tokens; tokens do not select experts."""

import torch
from torch import Tensor

from router_lab.capacity import Scope
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, count


@register("expert_choice")
class ExpertChoice(Router):
    """Expert i takes the ceil(k · T / E) tokens of largest p_ti; w = p.

    p = softmax(x W) over the experts. The load is equal by construction, so there is no balance
    loss; a token gets any number of experts, possibly none. Whether a token is chosen depends on
    the tokens after it, in evaluation too, so that a language model sees its future.

    Args:
        k: experts per token on average (the paper's capacity factor c).
        scope: tokens that compete: the micro-batch, or each sequence for itself.
    """

    paper = "Zhou et al. 2022, arXiv:2202.09368, section 3.2"
    reference = "golden outputs of google/flaxformer; a loop over experts in numpy"
    lookahead = "always"
    fixed_k = False

    def __init__(
        self, d_model: int, n_experts: int, k: float = 2.0, scope: Scope = "batch"
    ) -> None:
        super().__init__(d_model, n_experts, min(k, n_experts))
        self.scope = scope
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        pool_T, n_pools = torch.zeros_like(context.sequence_T), 1
        if self.scope == "sequence":
            pool_T, n_pools = context.sequence_T, context.n_sequences
        mask_TE = self._chosen(probs_TE.detach(), pool_T, n_pools)
        return Routing.from_mask(mask_TE, probs_TE, logits_TE, probs_TE)

    def _chosen(self, probs_TE: Tensor, pool_T: Tensor, n_pools: int) -> Tensor:
        """Mask of the tokens that each expert takes from each pool; ties go to earlier tokens."""
        size_P = count(pool_T, n_pools)
        room_P = torch.ceil(size_P.double() * (self.mean_k / self.n_experts) - 1e-9).long()
        # Sorted by pool, in each pool by score.
        order_ET = probs_TE.T.argsort(dim=1, descending=True, stable=True)
        order_ET = order_ET.gather(1, pool_T[order_ET].argsort(dim=1, stable=True))
        sorted_T = pool_T.sort().values  # the pools, the same for every expert
        place_T = torch.arange(len(pool_T), device=pool_T.device)
        place_T = place_T - (size_P.cumsum(0) - size_P)[sorted_T]
        chosen_T = place_T < room_P[sorted_T]
        mask_ET = torch.zeros_like(order_ET, dtype=torch.bool)
        return mask_ET.scatter(1, order_ET, chosen_T.expand_as(order_ET)).T
