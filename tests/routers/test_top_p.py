"""Top-p: the smallest sure set by a loop, its promises, and the entropy loss."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers import context_of
from hypothesis import given, strategies as st

from router_lab.losses import build_losses
from router_lab.routers.top_p import TopP


@pytest.mark.parametrize("p", [0.1, 0.4, 0.9, 1.0])
def test_equals_a_loop(reference_check: Callable[..., None], p: float) -> None:
    router = TopP(8, 6, p=p).train()
    x_TD = torch.randn(40, 8)
    routing = router(x_TD, context_of(1, 40))
    probs_TE = (x_TD @ router.gate.weight.T).softmax(1).detach()
    mine_TE = torch.zeros(40, 6)
    mine_TE[routing.taken.token_A, routing.taken.expert_A] = routing.taken.weight_A.detach()
    expected_TE, entropy = torch.zeros(40, 6), 0.0
    for t in range(40):
        total = 0.0
        for e in sorted(range(6), key=lambda e: -float(probs_TE[t, e])):
            expected_TE[t, e] = probs_TE[t, e]
            total += float(probs_TE[t, e])
            if total > p:
                break
        entropy -= sum(float(q) * math.log(float(q)) for q in probs_TE[t]) / 40
    assert torch.equal(mine_TE > 0, expected_TE > 0)
    own = float(routing.losses["dynamic"].detach()) / 1e-4
    reference_check(
        router="top_p",
        against=f"a loop over sorted probabilities and the entropy, p={p}",
        kind="own loop",
        tolerance=1e-5,
        error=max(float((mine_TE - expected_TE).abs().max()), abs(own - entropy)),
    )


@given(seed=st.integers(0, 10**6), p=st.floats(0.01, 0.99))
def test_enough_and_no_more(seed: int, p: float) -> None:
    """What is chosen sums to more than p; without its least probable expert it would not."""
    torch.manual_seed(seed)
    router = TopP(4, 7, p=p)
    with torch.no_grad():
        routing = router(3 * torch.randn(16, 4), context_of(1, 16))
    for t in range(16):
        weights = routing.taken.weight_A[routing.taken.token_A == t]
        assert weights.sum() > p - 1e-6
        assert weights.sum() - weights.min() <= p + 1e-6
        assert weights.min() >= routing.probs_TE[t].sort().values[-len(weights)] - 1e-7


def test_equal_probabilities() -> None:
    """Four experts at 1/4 and p = 0.5: a sum of 0.5 is not more than 0.5, so a third joins."""
    router = TopP(8, 4, p=0.5)
    torch.nn.init.zeros_(router.gate.weight)
    routing = router(torch.randn(5, 8), context_of(1, 5))
    assert routing.taken.token_A.bincount().tolist() == [3] * 5
    assert routing.taken.expert_A.tolist() == [0, 1, 2] * 5


def test_default_balance_loss(reference_check: Callable[..., None]) -> None:
    """The paper's N Σ f_i Q_i, with f_i the share of tokens that chose expert i."""
    router = TopP(8, 6)
    routing = router(torch.randn(40, 8), context_of(1, 40))
    (loss,) = build_losses({"default": {}}, router.default_losses).values()
    chosen = [int((routing.taken.expert_A == e).sum()) / 40 for e in range(6)]
    share = [float(routing.probs_TE[:, e].detach().sum()) / 40 for e in range(6)]
    expected = 6 * sum(f * q for f, q in zip(chosen, share, strict=True))
    assert loss.coef == 0.01
    reference_check(
        router="top_p",
        against="the paper's balance loss in loops",
        kind="own loop",
        tolerance=1e-5,
        error=abs(float(loss(routing, routing.demand_E).detach()) - expected),
    )
