"""Sigmoid top-1: the router of Llama 4."""

from torch import Tensor

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("sigmoid_top1")
class SigmoidTop1(Router):
    """w = σ(z) on the largest of z = x W; the weight scales the expert's input, not its output.

    A weight does not depend on the other experts' scores, so k = 1 has a gradient. Llama 4 adds a
    shared expert: `ffn.n_shared=1`.
    """

    paper = "Llama 4, Meta 2025 (no paper; the released implementation)"
    reference = "transformers: Llama 4"
    weight_on = "input"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(self, d_model: int, n_experts: int) -> None:
        super().__init__(d_model, n_experts, k=1)
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        score_TE = logits_TE.sigmoid()
        index_TK = logits_TE.argmax(dim=-1, keepdim=True)
        weight_TK = score_TE.gather(1, index_TK)
        probs_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
