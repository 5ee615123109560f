"""LongCat-Flash's router: identity experts, and a bias that holds the number of real ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals, refused


@register("longcat")
class LongCat(Router):
    """S = top-k(p + b), p = softmax(x W) over feed-forward and special experts; w = p_S · scale.

    A token that takes special experts gets fewer of the N feed-forward ones; the bias steers how
    many that are on average: after a step b_i += μ (k_ffn / k · 1 / N − T_i / (k T)) for each of
    them, with T_i of the step's T tokens. Special experts keep b = 0. The paper's loss between
    groups of devices is left out.

    See ffn=longcat for a layer with identity experts (special: {copy: …}).

    Args:
        k: experts per token; 12 in the paper, of 512 + 256.
        scale: of the weights (routed_scaling_factor).
        k_ffn: mean feed-forward experts per token; 8 in the paper. null: k N / (N + Z), as many
            as there would be without preference.
        u: how far the bias of a feed-forward expert without tokens moves in a step, so that
            μ = u k N / k_ffn. The paper gives no number.
    """

    paper = "LongCat-Flash, Meituan 2025, arXiv:2509.01322, section 2.1"
    reference = "transformers: LongCat-Flash, router and layer; the update by a loop"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        scale: float = 6.0,
        k_ffn: float | None = None,
        u: Amount = 1e-3,
        kinds: Sequence[str] | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        ffn_E = torch.tensor([kind == "ffn" for kind in kinds or ["ffn"] * n_experts])
        n_ffn = int(ffn_E.sum())
        if k_ffn is None:
            k_ffn = k * n_ffn / n_experts
        if not 0 < k_ffn <= min(k, n_ffn):
            raise refused(self, "k_ffn", k_ffn, f"above 0 and at most {min(k, n_ffn)}")
        if n_ffn == n_experts and k_ffn != k:
            raise refused(self, "k_ffn", k_ffn, "null or k in a layer without special experts")
        self.scale = scale
        self.k_ffn = k_ffn
        self.u = u
        self.gate = Gate(d_model, n_experts)
        self.ffn_E: Tensor = nn.Buffer(ffn_E, persistent=False)
        self.bias_E: Tensor = nn.Buffer(torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        index_TK = (probs_TE.detach() + self.bias_E.float()).topk(self.k, dim=-1).indices
        weight_TK = probs_TE.gather(1, index_TK) * self.scale
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)

    @torch.no_grad()
    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        assert self.k_ffn is not None
        wanted = self.k_ffn / self.ffn_E.sum() * max(totals.n_tokens, 1)
        self.bias_E += self.u * (1 - demand_E.float() / wanted) * self.ffn_E
