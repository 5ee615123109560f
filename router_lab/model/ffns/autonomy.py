"""Autonomy-of-Experts: no router; the experts with the largest internal activations compute."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.model.dispatch import Plan, combine, dispatch, refused_by_grouped_mm
from router_lab.model.ffn import BALANCED, FFN, Load
from router_lab.registry import register
from router_lab.routing import Gate, RouterContext, Routing, refused


@register("autonomy")
class AutonomyOfExperts(FFN):
    """E_i(x) = (SiLU(x A_i B_i) ⊙ x V_i) O_i, with A_i of low rank; z_i = ‖x A_i‖, S = top-k of z.

    Every expert computes x A_i for every token. Those with the largest norms continue, with weights
    softmax(z)_S.

    Differences from the release: it does not divide the weights by their sum
    (`norm_topk_prob=false`). Here they sum to 1, as in the paper, whose softmax is over the k
    largest norms.

    Args:
        n_experts: experts E.
        k: experts per token that continue.
        d_low: rank of A_i. null: D / 4. The paper tries 64 to 512; 256 is best.
        norm_topk_prob: divide the k weights by their sum.
    """

    paper = "Autonomy-of-Experts, Lv et al. 2025, arXiv:2501.13074, section 3"
    reference = "golden outputs of trestad/Autonomy-of-Experts; a loop over tokens and experts"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        n_experts: int = 8,
        k: int = 2,
        d_low: int | None = None,
        norm_topk_prob: bool = True,
    ) -> None:
        super().__init__(d_model, d_hidden)
        if d_low is None:
            d_low = max(d_model // 4, 1)
        for option, value in {"n_experts": n_experts, "d_low": d_low}.items():
            if value < 1:
                raise refused(self, option, value, "at least 1")
        if not 1 <= k <= n_experts:
            raise refused(self, "k", k, f"between 1 and the number of experts, {n_experts}")
        self.n_experts = n_experts
        self.k = k
        self.norm_topk_prob = norm_topk_prob
        self.low = Gate(d_model, n_experts * d_low)  # all A_i; L is their rank
        self.up_ELF = nn.Parameter(torch.randn(n_experts, d_low, d_hidden) * d_low**-0.5)
        self.value_EDF = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * d_model**-0.5)
        self.out_EFD = nn.Parameter(torch.randn(n_experts, d_hidden, d_model) * d_hidden**-0.5)

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        low_TEL = self.low(x_TD).unflatten(1, (self.n_experts, -1))
        logits_TE = torch.linalg.vector_norm(low_TEL, dim=-1)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        routing = Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, context=context)
        plan = Plan(routing.taken, len(x_TD), self.n_experts)
        rows_RD = dispatch(x_TD, plan)
        pair_R = plan.token_R * self.n_experts + plan.expert_R
        low_RL = low_TEL.flatten(0, 1).index_select(0, pair_R).to(x_TD.dtype)
        gate_RF = grouped_linear(low_RL, self.up_ELF, plan)
        value_RF = grouped_linear(rows_RD, self.value_EDF, plan)
        rows_RD = grouped_linear(F.silu(gate_RF) * value_RF, self.out_EFD, plan)
        y_TD = combine(rows_RD, routing.taken.weight_A, plan)
        return y_TD.to(x_TD.dtype), {"": routing}

    def output_weights(self) -> Iterator[Tensor]:
        yield self.out_EFD

    def active_params(self) -> float:
        going_on = self.up_ELF.numel() + self.value_EDF.numel() + self.out_EFD.numel()
        return self.low.weight.numel() + self.k / self.n_experts * going_on

    def matmul_params(self, load: Load = BALANCED, rows: float = 1.0) -> float:
        return rows * self.active_params()


def grouped_linear(rows_RI: Tensor, weight_EIO: Tensor, plan: Plan) -> Tensor:
    """Each row times the weight of its expert [R, O]. Respects autocast, like a linear layer."""
    device = rows_RI.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows_RI, weight_EIO = rows_RI.to(dtype), weight_EIO.to(dtype)
    if not refused_by_grouped_mm(weight_EIO):
        return F.grouped_mm(rows_RI, weight_EIO, offs=plan.ends_E)
    # Indexed expert by expert, the weight would get a gradient of the whole stack from each.
    parts = zip(rows_RI.split(plan.sizes), weight_EIO.unbind(0), strict=True)
    return torch.cat([rows @ weight for rows, weight in parts])
