"""DynMoE's gate: choices, straight-through gradient and losses, each in another formulation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import context_of

from router_lab.routers.dynmoe import DynMoE

CONTEXT = context_of(2, 20)
T, D, E = 40, 8, 5


def router_with_thresholds() -> DynMoE:
    """Weights of other lengths than 1; thresholds so high that some tokens pass none."""
    router = DynMoE(D, E)
    with torch.no_grad():
        router.gate.weight.normal_()
        router.threshold_E.copy_(torch.tensor([0.5, 0.2, 0.4, 0.3, 0.6]))
    return router


@pytest.mark.parametrize("training", [True, False])
def test_choice_equals_a_loop(reference_check: Callable[..., None], training: bool) -> None:
    router = router_with_thresholds().train(training)
    x_TD = 3 * torch.randn(T, D)
    routing = router(x_TD, CONTEXT)
    mine_TE = torch.zeros(T, E)
    mine_TE[routing.taken.token_A, routing.taken.expert_A] = routing.taken.weight_A.detach()
    expected_TE, lonely = torch.zeros(T, E), 0
    for t in range(T):
        cos = [float(F.cosine_similarity(x_TD[t], w, dim=0).detach()) for w in router.gate.weight]
        active = [i for i in range(E) if cos[i] > float(router.threshold_E[i].detach())]
        if not active:
            lonely += 1
            active = [] if training else [max(range(E), key=lambda i: cos[i])]
        for i in active:
            expected_TE[t, i] = 1 / len(active)
    assert 0 < lonely < T
    reference_check(
        router="dynmoe",
        against="a loop over tokens and experts, " + ("training" if training else "evaluation"),
        kind="own loop",
        tolerance=1e-6,
        error=(mine_TE - expected_TE).abs().max(),
    )


def test_straight_through_gradient(reference_check: Callable[..., None]) -> None:
    """As if the weight of an active expert were (σ(cos) − σ(G)) / (number of active ones)."""
    router = router_with_thresholds().train()
    x_TD = torch.randn(T, D)
    cost_TE = torch.randn(T, E)
    routing = router(x_TD, CONTEXT)
    (
        routing.taken.weight_A * cost_TE[routing.taken.token_A, routing.taken.expert_A]
    ).sum().backward()

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    threshold_E = router.threshold_E.detach().double().requires_grad_()
    surrogate = torch.zeros((), dtype=torch.double)
    n_active_T = routing.taken.token_A.bincount(minlength=T)
    for t, e in zip(routing.taken.token_A.tolist(), routing.taken.expert_A.tolist(), strict=True):
        cos = F.cosine_similarity(x_TD[t].double(), weight_ED[e], dim=0)
        gap = torch.sigmoid(cos) - torch.sigmoid(threshold_E[e])
        surrogate = surrogate + cost_TE[t, e] * gap / n_active_T[t]
    surrogate.backward()
    difference = [
        (router.gate.weight.grad - weight_ED.grad).abs().max(),
        (router.threshold_E.grad - threshold_E.grad).abs().max(),
    ]
    reference_check(
        router="dynmoe",
        against="gradient of the surrogate in float64",
        kind="own loop",
        tolerance=1e-5,
        error=max(difference),
    )


def test_losses(reference_check: Callable[..., None]) -> None:
    router = router_with_thresholds()
    rows = router.gate.weight.detach()
    squares = 0.0
    for i in range(E):
        for j in range(E):
            cos = 1.0 if i == j else float(F.cosine_similarity(rows[i], rows[j], dim=0))
            squares += (cos - (i == j)) ** 2
    simplicity = sum(float((row**2).sum()) ** 0.5 for row in rows) / E
    losses = router(torch.randn(T, D), CONTEXT).losses
    reference_check(
        router="dynmoe",
        against="diversity and simplicity by hand",
        kind="own loop",
        tolerance=1e-6,
        error=max(
            abs(float(losses["diversity"].detach()) - 0.01 * squares**0.5),
            abs(float(losses["simplicity"].detach()) - 0.01 * simplicity),
        ),
    )


def test_orthogonal_experts_have_no_diversity_loss() -> None:
    """As at the start; and its gradient there is finite."""
    router = DynMoE(D, E)
    loss = router(torch.randn(T, D), CONTEXT).losses["diversity"]
    loss.backward()
    assert loss < 1e-6
    assert router.gate.weight.grad is not None and router.gate.weight.grad.isfinite().all()
