"""Quantile balancing: the quantile by sorting, the dual it descends, and the balance it reaches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import context_of
from hypothesis import given, strategies as st

from router_lab.routers.quantile_balancing import QuantileBalancing, balancing_quantile
from router_lab.routing import StepTotals


def by_sorting(z: np.ndarray, beta: np.ndarray, k: int) -> np.ndarray:
    """Megatron-LM's rule, one token and one expert at a time."""
    T, E = z.shape
    alpha = [sorted((z[t] - beta).tolist(), reverse=True)[k] for t in range(T)]
    return np.array(
        [sorted((z[t, i] - alpha[t] for t in range(T)), reverse=True)[T * k // E] for i in range(E)]
    )


def dual(z: np.ndarray, alpha: np.ndarray, beta: np.ndarray, k: int) -> float:
    """k Σ α + kT/E Σ β + Σ (z − α − β)⁺: its least value is the best balanced sum of scores."""
    T, E = z.shape
    excess = np.maximum(z - alpha[:, None] - beta, 0)
    return float(k * alpha.sum() + k * T / E * beta.sum() + excess.sum())


@pytest.mark.parametrize(
    ("T", "E", "k"), [(32, 8, 2), (30, 5, 3), (13, 4, 1), (1, 6, 2), (3, 8, 2)]
)
def test_quantile_equals_sorting(
    reference_check: Callable[..., None], T: int, E: int, k: int
) -> None:
    z, beta = np.random.randn(T, E), np.random.randn(E)
    ours = balancing_quantile(torch.tensor(z), torch.tensor(beta), k).numpy()
    reference_check(
        router="quantile_balancing",
        against=f"Megatron-LM's rule by sorting, T={T} E={E} k={k}",
        kind="own loop",
        tolerance=1e-12,
        error=np.abs(ours - by_sorting(z, beta, k)).max(),
    )


@given(seed=st.integers(0, 10**6), k=st.integers(1, 3))
def test_quantile_is_the_best_beta_for_its_alpha(seed: int, k: int) -> None:
    """No other β has a smaller dual while α stays: what a step of coordinate descent promises."""
    rng = np.random.default_rng(seed)
    z, beta = rng.normal(size=(16, 4)), rng.normal(size=4)
    alpha = np.sort(z - beta, axis=1)[:, ::-1][:, k]
    best = balancing_quantile(torch.tensor(z), torch.tensor(beta), k).numpy()
    least = dual(z, alpha, best, k)
    for i in range(4):
        for value in z[:, i] - alpha:  # the dual is piecewise linear: its least value is at a kink
            other = best.copy()
            other[i] = value
            assert dual(z, alpha, other, k) >= least - 1e-9


def test_steps_reach_the_linear_program(reference_check: Callable[..., None]) -> None:
    """On one batch over and over: the dual falls to within 1 % of the best balanced assignment."""
    optimize = pytest.importorskip("scipy.optimize")
    T, E, k = 48, 6, 2
    z = np.random.randn(T, E) + np.linspace(0, 2, E)
    rows = np.kron(np.eye(T), np.ones(E))
    columns = np.kron(np.ones(T), np.eye(E))
    best = optimize.linprog(
        -z.ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([np.full(T, k), np.full(E, k * T / E)]),
        bounds=(0, 1),
    )
    beta = np.zeros(E)
    for _ in range(50):
        beta = balancing_quantile(torch.tensor(z), torch.tensor(beta), k).numpy()
    alpha = np.sort(z - beta, axis=1)[:, ::-1][:, k]
    gap = dual(z, alpha, beta, k) / -best.fun - 1
    assert gap > -1e-9, "a dual value under the optimum: not the dual of this program"
    reference_check(
        router="quantile_balancing",
        against="scipy's linear program of the balanced assignment (relative)",
        kind="independent",
        tolerance=0.01,
        error=gap,
    )


def test_a_step_averages_micro_batches_and_centres(reference_check: Callable[..., None]) -> None:
    router = QuantileBalancing(8, 4, k=2, ema=0.25).train()
    router.beta_E.copy_(torch.tensor([0.5, -0.5, 0.25, -0.25]))
    beta, quantiles = router.beta_E.numpy().copy(), []
    sums: dict[str, Any] = {}
    for T in (16, 24):
        x_TD = torch.randn(T, 8)
        z = (x_TD @ router.gate.weight.T).detach().numpy()
        quantiles.append(by_sorting(z, beta, 2))
        for name, value in router(x_TD, context_of(1, T)).stats.items():
            sums[name] = sums.get(name, 0) + value
    new = 0.25 * beta + 0.75 * (quantiles[0] + quantiles[1]) / 2
    router.after_step(torch.zeros(4), StepTotals(40, 0.5, sums))
    reference_check(
        router="quantile_balancing",
        against="two micro-batches, ema and centring in numpy",
        kind="own loop",
        tolerance=1e-6,
        error=np.abs(router.beta_E.numpy() - (new - new.mean())).max(),
    )


def test_weights_do_not_see_beta() -> None:
    router = QuantileBalancing(8, 4, k=2)
    router.beta_E.copy_(torch.tensor([-90.0, -80.0, 0.0, 0.0]))
    x_TD = torch.randn(32, 8)
    routing = router(x_TD, context_of(1, 32))
    assert routing.taken.expert_A.view(32, 2).tolist() == [[0, 1]] * 32
    z_TE = x_TD @ router.gate.weight.T
    torch.testing.assert_close(routing.taken.weight_A.view(32, 2), z_TE[:, :2].softmax(1))


def test_balances_tokens_never_seen() -> None:
    """A skewed gate: three steps on other batches bring MaxVio under 0.2."""
    router = QuantileBalancing(8, 8, k=2).train()
    with torch.no_grad():
        router.gate.weight[0] += 2.0

    def route() -> Any:
        return router(torch.randn(2048, 8) + 0.5, context_of(1, 2048))

    def max_vio(routing: Any) -> float:
        load_E = routing.load_E.float()
        return float(load_E.max() / load_E.mean() - 1)

    assert max_vio(route()) > 1
    for _ in range(3):
        routing = route()
        router.after_step(routing.demand_E, StepTotals(2048, 0.25, routing.stats))
    assert max_vio(route()) < 0.2


def test_evaluation_and_all_experts_leave_beta_alone() -> None:
    assert not QuantileBalancing(8, 4).eval()(torch.randn(8, 8), context_of(1, 8)).stats
    router = QuantileBalancing(8, 4, k=4).train()
    routing = router(torch.randn(8, 8), context_of(1, 8))
    router.after_step(routing.demand_E, StepTotals(8, 1.0, routing.stats))
    assert router.beta_E.tolist() == [0.0] * 4
