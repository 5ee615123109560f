"""SparseMixer-v2: the distribution it draws from, and its gradient estimate by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from helpers import context_of
from torch import Tensor

from router_lab.routers.sparsemixer import SparseMixer


def with_logits(z_E: Tensor, T: int, eps: float, k: int = 2) -> tuple[SparseMixer, Tensor]:
    """A router that gives every token these logits, and the tokens."""
    router = SparseMixer(1, len(z_E), k=k, eps=eps)
    with torch.no_grad():
        router.gate.weight.copy_(z_E[:, None])
    return router, torch.ones(T, 1)


def probabilities(z: list[float], taken: list[int], eps: float) -> list[float]:
    """The distribution of a round, from the paper, one expert at a time."""
    best = max(v for i, v in enumerate(z) if i not in taken)
    open_ = [
        i not in taken and not (best - v) / max(abs(v), best) > 2 * eps for i, v in enumerate(z)
    ]
    mass = [float(torch.tensor(v).exp()) if o else 0.0 for v, o in zip(z, open_, strict=True)]
    return [m / sum(mass) for m in mass]


def test_draws_follow_the_masked_softmax(reference_check: Callable[..., None]) -> None:
    z, eps, T = [1.0, 0.8, 0.7, -0.5, 0.3], 0.25, 200_000
    router, x_TD = with_logits(torch.tensor(z), T, eps)
    index_TK = router.train()(x_TD, context_of(1, T)).taken.expert_A.view(T, 2)
    worst = 0.0
    for i, j in permutations(range(len(z)), 2):
        p = probabilities(z, [], eps)[i] * probabilities(z, [i], eps)[j] if z[i] >= 0.5 else 0.0
        share = ((index_TK[:, 0] == i) & (index_TK[:, 1] == j)).float().mean().item()
        worst = max(worst, abs(share - p) / (p * (1 - p) / T + 1e-9) ** 0.5)
    reference_check(
        router="sparsemixer",
        against="masked softmax by hand, 200,000 draws (standard errors)",
        kind="own loop",
        tolerance=4.0,
        error=worst,
    )


def test_gradient_estimate_by_hand(reference_check: Callable[..., None]) -> None:
    """Value h p_i and gradient p_i (δ_ij − p_j), with h = 1, or 1/3 three times out of four."""
    z_E, eps, T = torch.tensor([0.9, 1.0, 0.7, -0.5]), 0.25, 4000
    router, x_TD = with_logits(z_E, T, eps, k=1)
    routing = router.train()(x_TD, context_of(1, T))
    p = probabilities(z_E.tolist(), [], eps)
    worst = 0.0
    for i in range(3):
        rows = (routing.taken.expert_A == i).nonzero().squeeze(1)
        h = routing.taken.weight_A[rows].detach() / p[i]
        third = (h - 1 / 3).abs() < 1e-5
        assert bool((third | ((h - 1).abs() < 1e-5)).all())
        expected = 0.0 if i == 1 else 0.75
        assert abs(third.float().mean().item() - expected) < 0.05
        for kind in (third, ~third):
            if not kind.any():
                continue
            row = rows[kind][0]
            (grad,) = torch.autograd.grad(
                routing.taken.weight_A[row], router.gate.weight, retain_graph=True
            )
            hand = torch.tensor([p[i] * ((i == j) - p[j]) for j in range(4)])
            worst = max(worst, (grad[:, 0] - hand).abs().max().item())
    reference_check(
        router="sparsemixer",
        against="Heun's estimate by hand: p_i (δ_ij − p_j) whatever was drawn",
        kind="own loop",
        tolerance=1e-6,
        error=worst,
    )


def test_evaluation_takes_the_largest() -> None:
    z_E = torch.tensor([0.2, 1.0, 0.9, -2.0])
    router, x_TD = with_logits(z_E, 3, 0.01)
    routing = router.eval()(x_TD, context_of(1, 3))
    assert routing.taken.expert_A.tolist() == [1, 2] * 3
    assert (
        routing.taken.weight_A.tolist() == [1.0] * 6
    )  # all others are too far: one is left a round
