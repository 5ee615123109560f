"""XMoE's cosine router against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import context_of

from router_lab.routers.cosine import Cosine


@pytest.mark.parametrize("norm", [True, False])
def test_against_a_loop(reference_check: Callable[..., None], norm: bool) -> None:
    T, E, k = 20, 6, 2
    router = Cosine(16, E, k=k, proj_dim=5, temperature=0.3, norm_topk_prob=norm)
    x_TD = torch.randn(T, 16)
    routing = router(x_TD, context_of(1, T))
    worst = 0.0
    for t in range(T):
        v = (router.project.weight.double() @ x_TD[t].double()).tolist()
        scores = []
        for e in router.expert_EP.tolist():
            dot = sum(a * b for a, b in zip(v, e, strict=True))
            scores.append(dot / math.hypot(*v) / math.hypot(*e) / 0.3)
        top = sorted(range(E), key=lambda i: -scores[i])[:k]
        p = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        w = [p[i] / (sum(p[j] for j in top) if norm else 1) for i in top]
        assert routing.taken.expert_A.view(T, k)[t].tolist() == top
        found = routing.taken.weight_A.view(T, k)[t].tolist() + routing.probs_TE[t].tolist()
        worst = max(worst, *(abs(a - b) for a, b in zip(found, w + p, strict=True)))
    reference_check(
        router="cosine",
        against="Tutel's formula by a loop",
        kind="own loop",
        tolerance=1e-5,
        error=worst,
    )


def test_only_the_angle_counts() -> None:
    router, x_TD = Cosine(16, 4, k=2), torch.randn(8, 16)
    plain = router(x_TD, context_of(1, 8))
    with torch.no_grad():
        router.expert_EP.mul_(7.0)
    scaled = router(x_TD * torch.rand(8, 1), context_of(1, 8))
    torch.testing.assert_close(plain.logits_TE, scaled.logits_TE)
    assert plain.logits_TE.abs().max() <= 1 / 0.5 + 1e-5


def test_temperature_is_learned_and_bounded() -> None:
    router, x_TD = Cosine(16, 4, k=2, temperature=0.01), torch.randn(8, 16)
    with torch.no_grad():
        router.log_scale.add_(3.0)
    assert router(x_TD, context_of(1, 8)).logits_TE.abs().max() <= 100.01
    router = Cosine(16, 4, k=2)
    router(x_TD, context_of(1, 8)).taken.weight_A.square().sum().backward()
    assert router.log_scale.grad is not None and router.log_scale.grad.abs() > 0
