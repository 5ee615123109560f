"""Softmax top-k: the router of Mixtral, Qwen3-MoE, OLMoE, Granite and JetMoE."""

from typing import Literal

from torch import Tensor

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("softmax_topk")
class SoftmaxTopK(Router):
    """w = softmax(z) on the k largest, z = x W; renormalised over them or not.

    The default loss is Switch's, 0.01 at each layer. OLMoE's 0.01 and Mixtral's 0.001 are for the
    mean over the layers: `loss=load_balance loss.load_balance.reduce=mean`.

    Args:
        k: experts per token.
        softmax: `before` the top-k, over all experts (Mixtral, Qwen3, OLMoE), or `after`, over the
            k chosen (gpt-oss, Granite, JetMoE); with renormalising the two are equal.
        norm_topk_prob: divide the k weights by their sum (Mixtral, Qwen3: yes; OLMoE: no).
        bias: whether the gate has one (gpt-oss).
    """

    paper = "Mixtral, Jiang et al. 2024, arXiv:2401.04088, section 2.1; OLMoE, arXiv:2409.02060"
    reference = "transformers: Mixtral, Qwen3-MoE, OLMoE, gpt-oss"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        softmax: Literal["before", "after"] = "before",
        norm_topk_prob: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        if norm_topk_prob or softmax == "after":
            self.refuse_constant_weight("set router.norm_topk_prob=false router.softmax=before")
        self.softmax = softmax
        self.norm_topk_prob = norm_topk_prob
        self.gate = Gate(d_model, n_experts, bias=bias)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        top_TK, index_TK = logits_TE.topk(self.k, dim=-1)
        if self.softmax == "after" or self.norm_topk_prob:
            weight_TK = top_TK.softmax(dim=-1)  # equals softmax over all experts, renormalised
        else:
            weight_TK = probs_TE.gather(1, index_TK)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
