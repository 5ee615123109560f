"""A random gate that is never trained: what a learned one has to beat."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("random_fixed")
class RandomFixed(Router):
    """w = softmax(z) over the k largest z = x W, with W drawn once and frozen.

    Similar vectors go to the same experts, but the choice is not learned: locality alone.

    Args:
        k: experts per token.
    """

    paper = "SMoE-Dropout's random routing, Chen et al. 2023, arXiv:2303.01610"
    reference = "a loop over tokens"

    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        # A buffer: no optimiser and no weight decay reaches it.
        self.weight_ED: Tensor = nn.Buffer(Gate(d_model, n_experts).weight.detach())

    def matmul_params(self) -> float:
        return self.weight_ED.numel()

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight_ED.float())
        top_TK, index_TK = logits_TE.topk(self.k, dim=-1)
        weight_TK, probs_TE = top_TK.softmax(dim=-1), logits_TE.softmax(dim=-1)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
