"""Steps of expert selection that several routers share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.routing import Router, Routing, refused

GroupScore = Literal["max", "top2", "topk"]
Score = Literal["sigmoid", "softmax", "sqrtsoftplus"]


def scored(logits_TE: Tensor, score: Score) -> Tensor:
    """Logits as scores of 0 or more: σ(z), softmax(z), or DeepSeek-V4's √softplus(z)."""
    if score == "sigmoid":
        return logits_TE.sigmoid()
    if score == "softmax":
        return logits_TE.softmax(dim=-1)
    return F.softplus(logits_TE).clamp_min(1e-20).sqrt()  # √ has no gradient at 0


def distribution(score_TE: Tensor) -> Tensor:
    """Scores that are 0 or more over their row sum: rows sum to 1, a row of zeros stays 0."""
    return score_TE / score_TE.sum(dim=-1, keepdim=True).clamp_min(1e-20)


def chosen_weights(score_TE: Tensor, index_TK: Tensor, norm: bool, scale: float) -> Tensor:
    """The scores of the chosen experts, over their sum if `norm`, times `scale` [T, K]."""
    weight_TK = score_TE.gather(1, index_TK)
    return (distribution(weight_TK) if norm else weight_TK) * scale


def equal_shares(index_TK: Tensor, n_experts: int) -> Routing:
    """The record of a router without scores: each of the K chosen experts has the weight 1/K."""
    T, K = index_TK.shape
    weight_TK = torch.full((T, K), 1 / K, device=index_TK.device)
    zeros_TE = torch.zeros(T, n_experts, device=index_TK.device)
    probs_TE = zeros_TE.scatter(1, index_TK, weight_TK)
    return Routing.from_topk(index_TK, weight_TK, zeros_TE, probs_TE)


def limit_to_groups(
    score_TE: Tensor, n_groups: int, topk_groups: int, group_score: GroupScore, k: int
) -> Tensor:
    """The scores with −∞ for every expert outside the token's `topk_groups` best groups [T, E].

    The experts stand in `n_groups` groups of equal size, group by group. A group's score is its
    largest score (`max`, DeepSeek-V2), the sum of its two largest (`top2`, DeepSeek-V3) or of its
    k // topk_groups largest (`topk`, Megatron-LM).
    """
    if topk_groups == n_groups:
        return score_TE
    best = {"max": 1, "top2": 2, "topk": k // topk_groups}[group_score]
    score_TGN = score_TE.unflatten(1, (n_groups, -1))
    group_TG = score_TGN.topk(best, dim=-1).values.sum(dim=-1)
    chosen_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter(
        1, group_TG.topk(topk_groups, dim=-1).indices, True
    )
    masked_TE: Tensor = score_TGN.masked_fill(~chosen_TG[..., None], -torch.inf).flatten(1)
    return masked_TE


def check_groups(
    router: Router, k: int, n_groups: int, topk_groups: int, group_score: GroupScore
) -> None:
    """Raises UserError if the router's experts cannot be chosen by these groups."""
    E = router.n_experts
    if n_groups < 1 or E % n_groups:
        raise refused(router, "n_groups", n_groups, f"a divisor of the number of experts, {E}")
    if not 1 <= topk_groups <= n_groups:
        raise refused(router, "topk_groups", topk_groups, f"from 1 to n_groups, {n_groups}")
    size = E // n_groups
    if k > topk_groups * size:
        raise refused(router, "k", k, f"at most {topk_groups * size}, the experts of topk_groups")
    best = {"max": 1, "top2": 2, "topk": k // topk_groups}[group_score]
    if topk_groups < n_groups and not 1 <= best <= size:
        right = f"one whose count of experts in a group, here {best}, is from 1 to {size}"
        raise refused(router, "group_score", group_score, right)
