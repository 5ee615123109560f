"""ReLU routing (ReMoE): an expert is active where its score is positive."""

from typing import Annotated

import torch
from torch import Tensor, nn

from router_lab.check import ABOVE_0, Rule
from router_lab.registry import register
from router_lab.routers._selection import distribution
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


@register("relu")
class ReLURouter(Router):
    """w = ReLU(x W), not normalised; expert i is active where w_i > 0, any number of them.

    Its own loss is λ · E · Σ_i f_i · mean_t w_ti, f_i = (tokens of expert i) / (kT):
    an L1 norm that weighs busy experts more. λ steers the density, the share of (token, expert)
    pairs that are active, to k / E: after each step λ ← λ · α where the density, averaged over the
    model's routed layers, is above k / E, else λ / α. All layers see that average, so λ is one for
    the model. Half of the experts are active at first; λ needs about 100 steps to take hold.

    Args:
        k: experts per token on average once λ has settled; also what the FLOP count uses.
        lambda_init: λ before the first step.
        multiplier: α.
    """

    paper = "ReMoE, Wang et al. 2024, arXiv:2412.14711, section 3"
    reference = "golden outputs of thu-ml/ReMoE; its loss and update of λ as loops"
    fixed_k = False

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: float = 2.0,
        lambda_init: Annotated[float, ABOVE_0] = 1e-8,
        multiplier: Annotated[float, Rule("above 1", lambda v: v > 1)] = 1.2,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.multiplier = multiplier
        self.gate = Gate(d_model, n_experts)
        self.coef: Tensor = nn.Buffer(torch.tensor(lambda_init))

    @property
    def own_losses(self) -> dict[str, float]:  # type: ignore[override]
        """λ as it is now."""
        return {"l1": float(self.coef)}

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        T, E = len(x_TD), self.n_experts
        logits_TE = self.gate(x_TD)
        weight_TE = logits_TE.relu()
        mask_TE = weight_TE > 0
        f_E = mask_TE.sum(dim=0) / (self.mean_k * max(T, 1))
        l1 = self.coef * E * (f_E * weight_TE.sum(dim=0) / max(T, 1)).sum()
        probs_TE = distribution(weight_TE)
        return Routing.from_mask(mask_TE, weight_TE, logits_TE, probs_TE, losses={"l1": l1})

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        too_dense = totals.density > self.mean_k / self.n_experts
        self.coef *= self.multiplier if too_dense else 1 / self.multiplier
