"""Switch: one expert per token, behind a capacity limit."""

from typing import Annotated

from torch import Tensor

from router_lab.capacity import Capacity, Factor, Order, Scope
from router_lab.check import BELOW_1
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("switch")
class Switch(Router):
    """w = max p, p = softmax(x W); an expert carries out ceil(factor · T / E).

    In training the router, and the router alone, sees x multiplied by noise from U[1 − ε, 1 + ε].
    A token whose expert is full gets nothing, and the residual stream carries it on.

    Args:
        jitter: ε.
        factor: room of an expert over its load at perfect balance, in training.
        eval_factor: the same in evaluation. 2.0 as in mesh-TensorFlow, where the paper's code is
            (`capacity_factor_eval`); null: the same as in training.
        order: who is served first (see the router `capacity`).
        scope: tokens that share the room: the micro-batch, or each sequence for itself.
    """

    paper = "Switch Transformers, Fedus et al. 2021, arXiv:2101.03961, eq. 1–6 and section 2.2"
    reference = "transformers: Switch Transformers"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        jitter: Annotated[float, BELOW_1] = 0.01,
        factor: Factor = 1.25,
        eval_factor: Factor | None = 2.0,
        order: Order = "position",
        scope: Scope = "batch",
    ) -> None:
        super().__init__(d_model, n_experts, k=1)
        self.capacity = Capacity(factor, order, scope, eval_factor=eval_factor)
        self.jitter = jitter
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        if self.training and self.jitter:
            x_TD = x_TD * (1 + self.jitter * (2 * context.uniform(self.d_model) - 1))
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_T1, index_T1 = probs_TE.max(dim=-1, keepdim=True)
        return Routing.from_topk(index_T1, weight_T1, logits_TE, probs_TE)
