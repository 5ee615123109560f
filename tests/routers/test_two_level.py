"""The two-level router against a loop over tokens, groups and experts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import context_of

from router_lab.routers.two_level import TwoLevel


def softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def largest(p: list[float], n: int) -> list[int]:
    return sorted(range(len(p)), key=lambda i: -p[i])[:n]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("n_groups", "k_groups", "k"), [(4, 2, 4), (3, 3, 6), (2, 2, 8)])
def test_against_a_loop(
    reference_check: Callable[..., None], norm: bool, n_groups: int, k_groups: int, k: int
) -> None:
    T, E = 20, 12
    size = E // n_groups
    router = TwoLevel(16, E, k=k, n_groups=n_groups, k_groups=k_groups, norm_topk_prob=norm)
    x_TD = torch.randn(T, 16)
    routing = router(x_TD, context_of(1, T))
    worst = 0.0
    for t in range(T):
        outer = softmax((router.group_gate.weight @ x_TD[t]).tolist())
        inner = (router.expert_gate.weight @ x_TD[t]).tolist()
        weight, probs = {}, []
        chosen = largest(outer, k_groups)
        for g in range(n_groups):
            within = softmax(inner[g * size : (g + 1) * size])
            probs += [outer[g] * p for p in within]
            if g not in chosen:
                continue
            best = largest(within, k // k_groups)
            for i in best:
                w = outer[g] * within[i]
                if norm:
                    w /= sum(outer[h] for h in chosen) * sum(within[j] for j in best)
                weight[g * size + i] = w
        found = dict(
            zip(
                routing.taken.expert_A.view(T, k)[t].tolist(),
                routing.taken.weight_A.view(T, k)[t].tolist(),
                strict=True,
            )
        )
        assert found.keys() == weight.keys()
        assert list(found.values()) == sorted(found.values(), reverse=True)
        worst = max(worst, *(abs(found[e] - w) for e, w in weight.items()))
        pairs = zip(routing.probs_TE[t].tolist(), probs, strict=True)
        worst = max(worst, *(abs(a - b) for a, b in pairs))
        if norm:
            assert sum(found.values()) == pytest.approx(1)
    reference_check(
        router="two_level",
        against=f"Shazeer's eq. 12 by a loop, {k_groups} of {n_groups} groups",
        kind="own loop",
        tolerance=1e-6,
        error=worst,
    )


def test_one_expert_per_group_learns_without_renormalising() -> None:
    x_TD, context = torch.randn(8, 16), context_of(1, 8)
    for k, k_groups in ((1, 1), (2, 2), (2, 1)):
        router = TwoLevel(16, 8, k=k, k_groups=k_groups, norm_topk_prob=False)
        router(x_TD, context).taken.weight_A.square().sum().backward()
        for parameter in router.parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0
