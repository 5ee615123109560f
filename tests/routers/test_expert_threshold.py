"""Expert threshold: the average by hand, expert choice in the warm-up, balance without a loss."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import context_of

from router_lab.routers.expert_threshold import ExpertThreshold
from router_lab.routing import StepTotals


def test_threshold_equals_the_authors_average(reference_check: Callable[..., None]) -> None:
    """Four steps of two micro-batches: raw average from 0, divided by 1 − βⁿ."""
    router = ExpertThreshold(8, 6, k=1.5, beta=0.9).train()
    raw, error = np.zeros(6), 0.0
    for step in range(1, 5):
        sums: dict[str, torch.Tensor] = {}
        cutoffs = []
        for T in (16, 20):
            x_TD = torch.randn(T, 8)
            z = (x_TD @ router.gate.weight.T).detach().numpy()
            cutoffs.append([sorted(z[:, i], reverse=True)[int(T * 1.5 / 6) - 1] for i in range(6)])
            for name, value in router(x_TD, context_of(1, T)).stats.items():
                sums[name] = sums.get(name, torch.zeros(6)) + value
        router.after_step(torch.zeros(6), StepTotals(36, 0.25, sums))
        raw = 0.9 * raw + 0.1 * np.mean(cutoffs, axis=0)
        corrected = raw / (1 - 0.9**step)
        error = max(error, np.abs(router.threshold_E.numpy() - corrected).max())
    reference_check(
        router="expert_threshold",
        against="the authors' bias-corrected average in numpy",
        kind="own loop",
        tolerance=1e-6,
        error=error,
    )


@pytest.mark.parametrize("training", [True, False])
def test_choice_equals_a_loop(reference_check: Callable[..., None], training: bool) -> None:
    router = ExpertThreshold(8, 5).train(training)
    router.threshold_E.copy_(torch.tensor([0.0, 0.5, -0.5, 1.0, 9.0]))
    x_TD = torch.randn(30, 8)
    routing = router(x_TD, context_of(1, 30))
    found = {
        (t, e): w
        for t, e, w in zip(
            routing.taken.token_A.tolist(),
            routing.taken.expert_A.tolist(),
            routing.taken.weight_A.tolist(),
            strict=True,
        )
    }
    expected = {}
    for t in range(30):
        for e, threshold in enumerate([0.0, 0.5, -0.5, 1.0, 9.0]):
            z = sum(
                float(a * b) for a, b in zip(x_TD[t], router.gate.weight[e].detach(), strict=True)
            )
            if z > threshold:
                expected[t, e] = 1 / (1 + np.exp(-z))
    assert found.keys() == expected.keys()
    reference_check(
        router="expert_threshold",
        against="a loop over tokens and experts, " + ("training" if training else "evaluation"),
        kind="own loop",
        tolerance=1e-6,
        error=max(abs(found[pair] - expected[pair]) for pair in expected),
    )


def test_warm_up_is_expert_choice_in_training_alone() -> None:
    router = ExpertThreshold(8, 4, k=2, warmup=10).train()
    assert (router.lookahead, ExpertThreshold(8, 4).lookahead) == ("in training", "never")
    x_TD = torch.randn(32, 8)
    routing = router(x_TD, context_of(1, 32, step=9))
    assert routing.demand_E.tolist() == [16] * 4
    z_TE = x_TD @ router.gate.weight.T
    for e in range(4):
        chosen = set(routing.taken.token_A[routing.taken.expert_A == e].tolist())
        assert chosen == set(z_TE[:, e].topk(16).indices.tolist())
    assert torch.equal(router(x_TD, context_of(1, 32, step=10)).demand_E, (z_TE >= 0).sum(0))
    assert torch.equal(router.eval()(x_TD, context_of(1, 32, step=0)).demand_E, (z_TE >= 0).sum(0))


def test_balances_tokens_never_seen() -> None:
    """A skewed gate: after 20 steps each expert gets its share, within a tenth."""
    router = ExpertThreshold(8, 8, k=2).train()
    with torch.no_grad():
        router.gate.weight[0] += 1.0
    for _ in range(20):
        routing = router(torch.randn(1024, 8) + 0.5, context_of(1, 1024))
        router.after_step(routing.demand_E, StepTotals(1024, 0.25, routing.stats))
    load_E = router.eval()(torch.randn(16384, 8) + 0.5, context_of(1, 16384)).load_E
    torch.testing.assert_close(load_E / 16384, torch.full((8,), 0.25), rtol=0.1, atol=0)
