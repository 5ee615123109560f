"""Hash layers: the token's id alone chooses its experts, from a table made before training."""

import heapq
import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from router_lab.check import Count
from router_lab.registry import register
from router_lab.routers._selection import chosen_weights, distribution, equal_shares, scored
from router_lab.routing import (
    Gate,
    Router,
    RouterContext,
    Routing,
    TokenCounts,
)


@register("hash")
class Hash(Router):
    """S = table[token id]; w = 1/k, or learned: w = s_S / Σ s_S · scale with s = √softplus(x W).

    The table is drawn once with the model's seed, one for each layer, and saved with the weights.

    Args:
        k: experts per token; 1 in the paper.
        table: `random`: k different experts for each id; `balanced`: ids in falling order of their
            count, each to the k experts with the least load (the paper's balanced assignment).
        token_counts: how often each id occurs in the training text, for `balanced`. Given by the
            run; without it all ids count equally, which balances ids, not tokens.
        vocab_size: ids in the table if token_counts is not given. Ids beyond the table wrap
            around.
        learned_weight: the weights of DeepSeek-V4's hash layers in place of 1/k.
        scale: of the learned weights (DeepSeek-V4: routed_scaling_factor).
    """

    paper = "Hash layers, Roller et al. 2021, arXiv:2106.04426, section 3; DeepSeek-V4"
    reference = "transformers: DeepSeek-V4's hash router; a greedy assignment by a loop"

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 1,
        table: Literal["random", "balanced"] = "random",
        vocab_size: Count = 65536,
        learned_weight: bool = False,
        scale: float = 1.5,
        token_counts: TokenCounts | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, k)
        if learned_weight:
            self.refuse_constant_weight("set router.learned_weight=false")
        self.scale = scale
        self.gate = Gate(d_model, n_experts) if learned_weight else None
        if table == "random":
            table_VK = torch.rand(vocab_size, n_experts).topk(k, dim=-1).indices
        else:
            counts = [1] * vocab_size if token_counts is None else token_counts()
            table_VK = balanced_table(counts, n_experts, k)
        self.table_VK: Tensor = nn.Buffer(table_VK.int())

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        index_TK = self.table_VK[context.token_id_T % len(self.table_VK)].long()
        if self.gate is None:
            return equal_shares(index_TK, self.n_experts)
        logits_TE = self.gate(x_TD)
        score_TE = scored(logits_TE, "sqrtsoftplus")
        weight_TK = chosen_weights(score_TE, index_TK, True, self.scale)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, distribution(score_TE))


def balanced_table(counts: Sequence[int], n_experts: int, k: int) -> Tensor:
    """Most frequent ids first, each to the k experts with the smallest sum of counts; long [V, K].

    Ties are broken at random, with torch's seed.
    """
    rng = random.Random(int(torch.randint(2**31, ())))
    queue = [(0, rng.random(), expert) for expert in range(n_experts)]
    heapq.heapify(queue)
    table: list[list[int]] = [[]] * len(counts)
    for token in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        emptiest = [heapq.heappop(queue) for _ in range(k)]
        table[token] = [expert for _, _, expert in emptiest]
        for load, _, expert in emptiest:
            heapq.heappush(queue, (load + counts[token], rng.random(), expert))
    return torch.tensor(table)
