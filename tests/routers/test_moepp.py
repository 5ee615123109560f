"""MoE++: gating residuals against a loop over two layers; its balance and capacity by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import context_of

from router_lab.capacity import Capacity
from router_lab.losses import LoadBalance
from router_lab.model.ffn import FFNS, build_ffn
from router_lab.model.ffns.moe import MoE
from router_lab.routers.moepp import MoEPlusPlus
from router_lab.routing import Routing

KINDS = ("ffn",) * 4 + ("zero", "copy", "constant", "constant")


@pytest.mark.parametrize("norm", [False, True])
def test_against_a_loop(reference_check: Callable[..., None], norm: bool) -> None:
    T, D, E = 12, 8, 5
    layers = [MoEPlusPlus(D, E, norm_topk_prob=norm) for _ in range(3)]
    x_LTD = torch.randn(3, T, D)
    record: Routing | None = None
    below = [[0.0] * E for _ in range(T)]
    worst = 0.0
    for router, x_TD in zip(layers, x_LTD, strict=True):
        record = router(x_TD, replace(context_of(1, T), previous=record))
        for t in range(T):
            z = (router.gate.weight @ x_TD[t]).tolist()
            z = [
                z[i] + sum(router.residual.weight[i, j].item() * below[t][j] for j in range(E))
                for i in range(E)
            ]
            below[t] = z
            p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
            top = sorted(range(E), key=lambda i: -p[i])[:2]
            w = [p[i] / (p[top[0]] + p[top[1]] if norm else 1) for i in top]
            assert record.taken.expert_A.view(T, 2)[t].tolist() == top
            found = record.taken.weight_A.view(T, 2)[t].tolist() + record.logits_TE[t].tolist()
            worst = max(worst, *(abs(a - b) for a, b in zip(found, w + z, strict=True)))
    reference_check(
        router="moepp",
        against="eq. 1 and 6 by a loop, three layers",
        kind="own loop",
        tolerance=2e-6,
        error=worst,
    )


def record(experts: list[list[int]], probs: list[float]) -> Routing:
    """Every token goes to these experts; all tokens have the same probabilities."""
    probs_TE = torch.tensor(probs).expand(len(experts), -1)
    index_TK = torch.tensor(experts)
    routing = Routing.from_topk(
        index_TK,
        torch.ones_like(index_TK),
        logits_TE=probs_TE,
        probs_TE=probs_TE,
        context=context_of(1, len(experts)),
    )
    return replace(routing, kinds=KINDS)


@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
def test_balance_loss_by_hand(reference_check: Callable[..., None], scope: str) -> None:
    """Eq. 7 with f that sums to 1, over its value where the loads are τ : 1."""
    tau, probs = 0.5, [0.05, 0.1, 0.05, 0.1, 0.1, 0.2, 0.3, 0.1]
    expert = [0, 0, 1, 4, 5, 5, 6, 7, 7, 7]
    eta = [1.0] * 4 + [tau] * 4
    share = [expert.count(i) / len(expert) for i in range(8)]
    paper = sum(n * f * p for n, f, p in zip(eta, share, probs, strict=True))
    balanced = [(1 / n) / sum(1 / m for m in eta) for n in eta]
    at_balance = sum(n * b * b for n, b in zip(eta, balanced, strict=True))
    routing = record([[e] for e in expert], probs)
    loss = LoadBalance(1.0, scope=scope, tau=tau)(routing, routing.demand_E)  # type: ignore[arg-type]
    reference_check(
        router="moepp",
        against=f"balance loss (eq. 7 over its value at balance) by hand, {scope}",
        kind="own loop",
        tolerance=1e-6,
        error=abs(loss.item() - paper / at_balance),
    )
    ideal = record([[e] for e in (0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7)], balanced)
    one = LoadBalance(1.0, scope=scope, tau=tau)(ideal, ideal.demand_E)  # type: ignore[arg-type]
    assert one.item() == pytest.approx(1.0)
    plain = replace(routing, kinds=())
    without = LoadBalance(1.0, tau=tau)(plain, plain.demand_E)
    assert without.item() == pytest.approx(LoadBalance(1.0)(plain, plain.demand_E).item())


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_capacity_by_hand(reference_check: Callable[..., None], scope: str) -> None:
    """Eq. 8 with 24 tokens, two experts each, so 48 assignments; τ N + Z = 6.

    A feed-forward expert has room for 1.25 · 0.5 · 48 / 6 = 5 of them, another for 10. With the
    number of tokens, 24, in their place it would be ⌈2.5⌉ = 3 and 5.
    """
    limit = Capacity(1.25, scope=scope, tau=0.5)  # type: ignore[arg-type]
    pairs = [[0, 4]] * 12 + [[5, 1]] * 12
    routing = record(pairs, [1 / 8] * 8)
    load = limit(routing).load_E.tolist()
    expected = [5, 5, 0, 0, 10, 10, 0, 0]
    reference_check(
        router="moepp",
        against=f"capacity of eq. 8 by hand, {scope}",
        kind="independent",
        tolerance=0.0,
        error=max(abs(a - b) for a, b in zip(load, expected, strict=True)),
    )


def test_layer_knows_what_it_costs() -> None:
    """τ N / (τ N + Z) of the k are feed-forward experts (table 1)."""
    config = {
        "name": "moe",
        "n_experts": 4,
        "router": {"name": "moepp", "tau": 0.5},
        "special": {"zero": 1, "copy": 1, "constant": 2},
    }
    moe = build_ffn(config, 8, 16)
    assert isinstance(moe, MoE)
    k_ffn = 2 * 0.5 * 4 / (0.5 * 4 + 4)
    gates = 8 * 8 + 8 * 8
    special = (2 * (8 + 2 * 8)) / 4  # a constant expert has a vector and two rows of W_c
    assert moe.active_params() == pytest.approx(k_ffn * 3 * 8 * 16 + (2 - k_ffn) * special + gates)
    assert moe.router.default_losses == {"load_balance": {"coef": 0.01, "tau": 0.5}}


def test_capacity_option_sets_the_stage() -> None:
    router = MoEPlusPlus(8, 8, tau=0.5, capacity_factor=1.1, kinds=KINDS)
    assert router.capacity is not None
    assert (router.capacity.factor, router.capacity.tau) == (1.1, 0.5)
    assert MoEPlusPlus(8, 8).capacity is None


def test_the_limit_holds_in_training_alone() -> None:
    """The released code evaluates without one."""
    moe = FFNS.build(
        {
            "name": "moe",
            "n_experts": 4,
            "router": {"name": "moepp", "capacity_factor": 0.5},
            "special": {"zero": 1, "copy": 1, "constant": 2},
        },
        d_model=8,
        d_hidden=16,
    )
    x_TD = torch.randn(64, 8)
    for training in (True, False):
        routing = moe.train(training)(x_TD, context_of(1, 64))[1][""]
        dropped = int(routing.demand_E.sum() - routing.load_E.sum())
        assert (dropped > 0) == training
