"""DynMoE's top-any gating: each expert has a threshold, and a token takes all that it passes."""

import torch
from torch import Tensor, nn

from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routers._selection import distribution
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("dynmoe")
class DynMoE(Router):
    """Expert i is active where σ(cos(x, W_i)) > σ(G_i); the weights are 1 / (number of active).

    The step has no gradient; for active experts W and G get that of σ(cos) − σ(G) instead
    (straight-through). In evaluation a token with no active expert goes to the one of largest cos;
    in training it gets none. Its own loss is coef · (‖Ŵᵀ Ŵ − I‖ + mean ‖W_i‖): diversity, with
    Frobenius norm and Ŵ of unit columns, and simplicity. The number of active experts is not
    bounded; half of them are active at first.

    Differences from the release: its loss also has a load-balance term and the mean of the gates,
    and it adds and removes experts during training.

    Args:
        coef: of the two losses.
        k: experts per token on average; it steers nothing, but the FLOP count uses it.
    """

    paper = "DynMoE, Guo et al. 2024, arXiv:2405.14297, top-any gating"
    reference = "golden outputs of LINs-lab/DynMoE; its gate and losses as loops"
    fixed_k = False

    def __init__(self, d_model: int, n_experts: int, k: float = 2.0, coef: Amount = 0.01) -> None:
        super().__init__(d_model, n_experts, k)
        self.coef = coef
        self.own_losses = {"diversity": coef, "simplicity": coef}
        self.gate = Gate(d_model, n_experts)
        nn.init.orthogonal_(self.gate.weight)
        self.threshold_E = nn.Parameter(torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        length_T1 = x_TD.float().norm(dim=1, keepdim=True).clamp_min(1e-12)
        length_E = self.gate.weight.float().norm(dim=1).clamp_min(1e-12)
        cosine_TE = self.gate(x_TD) / length_T1 / length_E
        score_TE = cosine_TE.sigmoid()
        excess_TE = score_TE - self.threshold_E.float().sigmoid()
        mask_TE = excess_TE > 0
        if not self.training:
            best_TE = torch.zeros_like(mask_TE).scatter(1, score_TE.argmax(1, keepdim=True), True)
            mask_TE = torch.where(mask_TE.any(dim=1, keepdim=True), mask_TE, best_TE)
        gate_TE = mask_TE + (excess_TE - excess_TE.detach())
        weight_TE = gate_TE / mask_TE.sum(dim=1, keepdim=True).clamp_min(1)
        unit_ED = nn.functional.normalize(self.gate.weight.float(), dim=1)
        with torch.autocast(unit_ED.device.type, enabled=False):
            overlap_EE = unit_ED @ unit_ED.T
        diversity = (overlap_EE - torch.eye(self.n_experts, device=x_TD.device)).norm()
        losses = {"diversity": diversity, "simplicity": length_E.mean()}
        losses = {name: self.coef * loss for name, loss in losses.items()}
        probs_TE = distribution(score_TE)
        return Routing.from_mask(mask_TE, weight_TE, cosine_TE, probs_TE, losses=losses)
