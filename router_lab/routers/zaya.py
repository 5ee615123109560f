"""ZAYA1's router: a small MLP whose state is carried from layer to layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.check import Amount, Count
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


@register("zaya")
class Zaya(Router):
    """r_l = W x_l + γ ⊙ r_{l−1}; p = softmax(MLP(RMSNorm(r_l))); S = top-k(p + b); w = p_S.

    r is the state, carried to the next routed layer (exponential depth averaging; r_0 = 0, γ a
    learned vector). The MLP has three layers and GELU. The bias is no parameter: after each step it
    takes a step of Adam with the gradient demand_i / Σ demand − 1/E.

    With special experts in the layer (ZAYA1-base's skip class is special: {zero: 1}), their bias
    is −1 and stays so; the others balance among themselves.

    Args:
        k: experts per token.
        d_router: width of the state. null: D / 8, as 256 is in ZAYA1, and at least 16.
        u: learning rate of the bias (the report does not give it).
    """

    paper = "ZAYA1, Anthony et al. 2025, arXiv:2511.17127; ZAYA1-8B, arXiv:2605.05365, section II"
    reference = "transformers: ZayaRouter over three layers; torch.optim.Adam for the bias"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 1,
        d_router: Count | None = None,
        u: Amount = 1e-3,
        kinds: Sequence[str] | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        d_router = d_router or max(d_model // 8, 16)
        self.u = u
        self.down = Gate(d_model, d_router, bias=True)
        self.decay_R = nn.Parameter(torch.ones(d_router))
        self.norm = nn.RMSNorm(d_router, eps=1e-5)
        self.hidden = nn.ModuleList(Gate(d_router, d_router, bias=True) for _ in range(2))
        self.out = Gate(d_router, n_experts)
        ffn_E = torch.tensor([kind == "ffn" for kind in kinds or ["ffn"] * n_experts])
        self.ffn_E: Tensor = nn.Buffer(ffn_E, persistent=False)
        self.bias_E: Tensor = nn.Buffer(-(~ffn_E).float())
        self.moments_2E: Tensor = nn.Buffer(torch.zeros(2, n_experts))
        self.steps: Tensor = nn.Buffer(torch.zeros((), dtype=torch.long))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        state_TR = self.down(x_TD)
        below_TR = context.previous.state if context.previous is not None else None
        if below_TR is None:  # zeros: DDP requires a gradient of γ in the first layer too
            below_TR = torch.zeros_like(state_TR)
        state_TR = state_TR + self.decay_R * below_TR
        hidden_TR = self.norm(state_TR)
        for layer in self.hidden:
            hidden_TR = F.gelu(layer(hidden_TR))
        logits_TE = self.out(hidden_TR)
        probs_TE = logits_TE.softmax(dim=-1)
        index_TK = (probs_TE.detach() + self.bias_E.float()).topk(self.k, dim=-1).indices
        weight_TK = probs_TE.gather(1, index_TK)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, state=state_TR)

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        demand_E = demand_E.float() * self.ffn_E
        share_E = demand_E / demand_E.sum().clamp_min(1)
        error_E = (share_E - 1 / self.ffn_E.sum()) * self.ffn_E
        self.steps += 1
        decay = self.moments_2E.new_tensor([[0.9], [0.999]])
        self.moments_2E.lerp_(torch.stack([error_E, error_E.square()]), 1 - decay)
        mean_E, square_E = self.moments_2E / (1 - decay**self.steps)
        self.bias_E -= self.u * mean_E / (square_E.sqrt() + 1e-8)
