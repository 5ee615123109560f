"""Group-limited selection: three rules for a group's score, and DeepSeek-V2's balance loss."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import context_of

from router_lab.losses import build_losses
from router_lab.routers._selection import limit_to_groups
from router_lab.routers.group_limited import GroupLimited

CONTEXT = context_of(4, 16)


@pytest.mark.parametrize(("rule", "counted"), [("max", 1), ("top2", 2), ("topk", 3)])
def test_selection_equals_a_loop(
    reference_check: Callable[..., None], rule: str, counted: int
) -> None:
    """k = 6 of 2 out of 4 groups of 6; scores of both signs, as with a bias."""
    score_TE = torch.randn(200, 24)
    limited_TE = limit_to_groups(score_TE, 4, 2, rule, 6)  # type: ignore[arg-type]
    wrong = 0
    for t in range(200):
        groups = [score_TE[t, 6 * g : 6 * g + 6].tolist() for g in range(4)]
        rank = sorted(range(4), key=lambda g: sum(sorted(groups[g])[-counted:]))[-2:]
        allowed = [e for e in range(24) if e // 6 in rank]
        best = sorted(allowed, key=lambda e: float(score_TE[t, e]))[-6:]
        wrong += set(limited_TE[t].topk(6).indices.tolist()) != set(best)
        assert limited_TE[t].isinf().sum() == 12
    reference_check(
        router="group_limited",
        against=f"a loop over tokens and groups, group_score={rule}: wrong sets",
        kind="own loop",
        tolerance=0,
        error=wrong,
    )


def test_the_rules_differ() -> None:
    """Scores (5, 0 | 4, 3 | …): `max` takes the first group, `top2` the second."""
    score_TE = torch.tensor([[5.0, 0.0, 4.0, 3.0]])
    assert limit_to_groups(score_TE, 2, 1, "max", 2)[0].tolist() == [5, 0, -torch.inf, -torch.inf]
    assert limit_to_groups(score_TE, 2, 1, "top2", 2)[0].tolist() == [-torch.inf, -torch.inf, 4, 3]
    assert limit_to_groups(score_TE, 2, 1, "topk", 1)[0].tolist() == [5, 0, -torch.inf, -torch.inf]


def test_a_token_meets_few_groups() -> None:
    router = GroupLimited(8, 24, k=6, n_groups=8, topk_groups=3)
    index_TK = router(torch.randn(64, 8), CONTEXT).taken.expert_A.view(64, 6)
    assert all(len(set(row)) == 6 for row in index_TK.tolist())
    assert max(len({e // 3 for e in row}) for row in index_TK.tolist()) <= 3


def test_default_loss_by_the_equations(reference_check: Callable[..., None]) -> None:
    """DeepSeek-V2, eq. 23–25: α Σ f_i P_i over the tokens of a sequence, in loops."""
    router = GroupLimited(8, 8, k=2, n_groups=4, topk_groups=2)
    routing = replace(router(torch.randn(64, 8), CONTEXT), context=CONTEXT)
    (loss,) = build_losses({"default": {}}, router.default_losses).values()
    expected = 0.0
    for b in range(4):
        for i in range(8):
            tokens = range(16 * b, 16 * b + 16)
            f = 8 / (2 * 16) * sum(i in routing.taken.expert_A.view(64, 2)[t] for t in tokens)
            P = sum(float(routing.probs_TE[t, i].detach()) for t in tokens) / 16
            expected += 0.003 * f * P / 4
    reference_check(
        router="group_limited",
        against="DeepSeek-V2 eq. 23–25 in loops",
        kind="own loop",
        tolerance=1e-7,
        error=abs(loss.coef * float(loss(routing, routing.demand_E).detach()) - expected),
    )
