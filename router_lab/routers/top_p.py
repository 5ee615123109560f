"""Top-p: as many experts as it takes to be sure enough."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.check import Amount, Rule
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("top_p")
class TopP(Router):
    """w = p = softmax(z) on the fewest experts, most probable first, whose p sum to more than τ.

    The weights are not renormalised. Its own loss, β · mean over tokens of the entropy −Σ p log p,
    keeps the number of experts small.

    Args:
        p: the threshold τ.
        dynamic_coef: β.
        k: experts per token on average; it steers nothing, but the FLOP count uses it.
    """

    paper = "Huang et al. 2024, arXiv:2403.07652"
    reference = "golden outputs of ZhenweiAn/Dynamic_MoE; a loop over sorted probabilities"
    fixed_k = False
    default_losses = {"load_balance": {"coef": 0.01, "reference": "hf"}}

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: float = 2.0,
        p: Annotated[float, Rule("above 0 and at most 1", lambda v: 0 < v <= 1)] = 0.4,
        dynamic_coef: Amount = 1e-4,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.p = p
        self.dynamic_coef = dynamic_coef
        self.own_losses = {"dynamic": dynamic_coef}
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        sorted_TE, order_TE = probs_TE.detach().sort(dim=-1, descending=True, stable=True)
        before_TE = F.pad(sorted_TE.cumsum(dim=-1)[:, :-1], (1, 0))  # what the better ones sum to
        mask_TE = torch.zeros_like(before_TE, dtype=torch.bool)
        mask_TE = mask_TE.scatter(1, order_TE, before_TE <= self.p)
        entropy_T = -(probs_TE * logits_TE.log_softmax(dim=-1)).sum(dim=-1)
        losses = {"dynamic": self.dynamic_coef * entropy_T.sum() / max(len(x_TD), 1)}
        return Routing.from_mask(mask_TE, probs_TE, logits_TE, probs_TE, losses=losses)
