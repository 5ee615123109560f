"""SparseMixer-v2: sampled experts and a gradient estimate for the sampling."""

import torch
from torch import Tensor

from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("sparsemixer")
class SparseMixer(Router):
    """Experts are drawn one after the other, each round from those not yet taken.

    Of these, whatever is far from the best is masked: (max z − z_i) / max(|z_i|, max z) > 2ε.
    p = softmax(z) over the rest. Training samples i ~ p, evaluation takes the largest. The weight
    is w = h p_i: h = 1 in evaluation and where i is the largest, else 1 with probability 1/4 and
    1/3 with 3/4. Its gradient is that of p_i, whatever h was, which makes it Heun's third-order
    estimate of the gradient through the choice. The weights are not renormalised over the rounds.

    Args:
        k: experts per token, one per round.
        eps: ε, how far below the best an expert may be and still be drawn. 0.01 in Phi-3.5-MoE.
    """

    paper = "GRIN, Liu et al. 2024, arXiv:2409.12136, section 2.1; SparseMixer, arXiv:2310.00811"
    reference = "transformers: PhiMoE's sparsemixer, with the same random draws"
    default_losses = {"load_balance": {"coef": 0.01}}

    def __init__(self, d_model: int, n_experts: int, k: int = 2, eps: Amount = 0.01) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.eps = eps
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        taken_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        rounds = []
        for n in range(self.k):
            index_T1, weight_T1 = self._draw(logits_TE, taken_TE, context, n)
            rounds.append((index_T1, weight_T1))
            taken_TE = taken_TE.scatter(1, index_T1, True)
        index_TK, weight_TK = (torch.cat(columns, dim=1) for columns in zip(*rounds, strict=True))
        return Routing.from_topk(index_TK, weight_TK, logits_TE, logits_TE.softmax(dim=-1))

    def _draw(
        self, logits_TE: Tensor, taken_TE: Tensor, context: RouterContext, n: int
    ) -> tuple[Tensor, Tensor]:
        """Another expert for every token in round n, and its weight, [T, 1] each."""
        z_TE = logits_TE.detach()
        best_T1, first_T1 = z_TE.masked_fill(taken_TE, -torch.inf).max(dim=-1, keepdim=True)
        far_TE = (best_T1 - z_TE) / z_TE.abs().maximum(best_T1) > 2 * self.eps
        masked_TE = taken_TE | far_TE
        probs_TE = logits_TE.masked_fill(masked_TE, -torch.inf).softmax(dim=-1)
        if not self.training:
            return first_T1, probs_TE.gather(1, first_T1)
        gumbel_TE = -(-context.uniform(self.n_experts, 2 * n).log()).log()
        noisy_TE = (z_TE + gumbel_TE).masked_fill(masked_TE, -torch.inf)
        drawn_T1 = noisy_TE.argmax(dim=-1, keepdim=True)
        weight_T1 = probs_TE.gather(1, drawn_T1)
        whole_T1 = (drawn_T1 == first_T1) | (context.uniform(1, 2 * n + 1) > 0.75)
        less_T1 = torch.where(whole_T1, 0.0, 2 / 3) * weight_T1.detach()
        return drawn_T1, weight_T1 - less_T1
