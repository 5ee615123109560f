"""BASE: the assignment against scipy's, the layer by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import context_of
from hypothesis import given, strategies as st
from torch import Tensor

from router_lab.model.ffn import FFNS
from router_lab.routers.base_layer import balanced_assignment
from router_lab.routing import ROUTERS


def optimum(score_TE: Tensor) -> Any:
    """The largest sum with ceil(T / E) seats an expert: every seat a column of its own."""
    optimize = pytest.importorskip("scipy.optimize")
    T, E = score_TE.shape
    seats = score_TE.double().numpy().repeat(math.ceil(T / E), axis=1)
    rows, columns = optimize.linear_sum_assignment(seats, maximize=True)
    return seats[rows, columns].sum()


def total(score_TE: Tensor, expert_T: Tensor) -> Any:
    return score_TE.double().gather(1, expert_T[:, None]).sum().item()


@given(T=st.integers(1, 40), E=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_whole_scores_are_assigned_exactly(T: int, E: int, seed: int) -> None:
    """A step below 1 / T cannot miss the best of whole numbers; ties abound."""
    generator = torch.Generator().manual_seed(seed)
    score_TE = torch.randint(-5, 6, (T, E), generator=generator).float()
    span = (score_TE.max() - score_TE.min()).item() or 1.0
    expert_T = balanced_assignment(score_TE, 0.99 / (T * span))
    assert torch.bincount(expert_T, minlength=E).max() <= math.ceil(T / E)
    assert total(score_TE, expert_T) == optimum(score_TE)


@pytest.mark.parametrize("epsilon", [0.02, 0.001])
@pytest.mark.parametrize(("T", "E"), [(64, 8), (60, 8), (3, 8), (400, 4)])
def test_assignment_is_within_its_steps_of_the_best(
    T: int, E: int, epsilon: float, reference_check: Callable[..., None]
) -> None:
    """Crowded scores: all tokens like the same experts."""
    score_TE = torch.randn(T, E) + 3 * torch.randn(E)
    expert_T = balanced_assignment(score_TE, epsilon)
    load_E = torch.bincount(expert_T, minlength=E)
    assert load_E.sum() == T and load_E.max() <= math.ceil(T / E)
    span = (score_TE.max() - score_TE.min()).item()
    missing = (optimum(score_TE) - total(score_TE, expert_T)) / (T * span)
    assert total(score_TE, score_TE.argmax(1)) > optimum(score_TE)  # the limit binds
    reference_check(
        router="base_layer",
        against=f"scipy linear_sum_assignment: sum of scores, in steps of T · {epsilon} · range",
        kind="independent",
        tolerance=epsilon,
        error=max(missing, 0.0),
    )


@pytest.mark.parametrize("score", [0.0, 7.0, math.nan, math.inf])
def test_equal_and_broken_scores_end_too(score: float) -> None:
    expert_T = balanced_assignment(torch.full((20, 4), score), 0.02)
    assert torch.bincount(expert_T, minlength=4).tolist() == [5] * 4


def test_worked_example() -> None:
    """Four tokens, two experts, two seats each; all prefer expert 0, by 4, 3, 2 and 1: the first
    two get it."""
    score_TE = torch.tensor([[5.0, 1.0], [4.0, 1.0], [3.0, 1.0], [2.0, 1.0]])
    assert balanced_assignment(score_TE, 0.02).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_layer_by_hand(
    residual: bool, training: bool, reference_check: Callable[..., None]
) -> None:
    """y = α E(x) + (1 − α) x with α = σ(x · c) of the token's expert, as in fairseq's layer."""
    moe = FFNS.build(
        {"name": "moe", "n_experts": 2, "router": {"name": "base_layer", "residual": residual}},
        d_model=4,
        d_hidden=3,
    ).train(training)
    context = context_of(1, 6)
    x_TD = torch.randn(6, 4) + moe.router.gate.weight[0].detach() * 100  # all prefer expert 0
    y_TD, records = moe(x_TD, context)
    expert_T = records[""].taken.expert_A
    assert torch.bincount(expert_T, minlength=2).tolist() == ([3, 3] if training else [6, 0])
    want = []
    for x, e in zip(x_TD, expert_T, strict=True):
        alpha = 1 / (1 + math.exp(-(x @ moe.router.gate.weight[e]).item()))
        gate, up = (x @ moe.experts.gate_up_EDF[e]).chunk(2)
        output = (gate * gate.sigmoid() * up) @ moe.experts.down_EFD[e]
        want.append(alpha * output + ((1 - alpha) * x if residual else 0))
    want_TD = torch.stack(want)
    reference_check(
        router="base_layer",
        against="the layer by hand: α-mixed output, in training and evaluation",
        kind="own loop",
        tolerance=2e-6,
        error=((y_TD - want_TD).abs().max() / want_TD.abs().max()).item(),
    )


def test_centroids_start_orthogonal() -> None:
    router = ROUTERS.build({"name": "base_layer"}, d_model=16, n_experts=4)
    weight_ED = router.gate.weight
    torch.testing.assert_close(weight_ED @ weight_ED.T, 0.01 * torch.eye(4), rtol=0, atol=1e-6)
