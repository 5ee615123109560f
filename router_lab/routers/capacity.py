"""Softmax top-k behind a capacity limit: what an expert has no room for is dropped."""

from torch import Tensor

from router_lab.capacity import Capacity, Factor, Order, Scope
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("capacity")
class CapacityTopK(Router):
    """w = softmax(z) on the k largest, z = x W; an expert carries out ceil(factor · k · T / E).

    The rest contributes nothing, and the survivors keep their weight unless `renormalize` is set.

    Args:
        k: experts per token.
        factor: room of an expert over its load at perfect balance, in training.
        eval_factor: the same in evaluation; null: the same as in training; inf: no limit.
        order: who is served first: `position` (all first choices before second ones, earlier tokens
            before later ones), `probability` (largest weights), `priority` (all first choices
            before second ones, surest tokens first).
        scope: tokens that share the room: the micro-batch, or each sequence for itself.
        renormalize: scale a token's surviving weights to their sum before the drop.
        norm_topk_prob: divide the k weights by their sum.
    """

    paper = "GShard, Lepikhin et al. 2020, arXiv:2006.16668, section 2.2"
    reference = "a loop that fills the experts one assignment at a time"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        factor: Factor = 1.25,
        eval_factor: Factor | None = None,
        order: Order = "position",
        scope: Scope = "batch",
        renormalize: bool = False,
        norm_topk_prob: bool = True,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob:
            self.refuse_constant_weight("set router.norm_topk_prob=false")
        self.capacity = Capacity(factor, order, scope, renormalize, eval_factor=eval_factor)
        self.norm_topk_prob = norm_topk_prob
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
