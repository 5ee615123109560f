"""DenseMixer: sparse output, dense gradient, sparse record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import build_layer, context_of
from torch import Tensor, nn

from router_lab.model.experts import StackedExperts
from router_lab.model.ffns.moe import MoE

T, D, E = 24, 8, 6


def layer(k: int, norm: bool, **options: object) -> MoE:
    router = {"name": "densemixer", "k": k, "norm_topk_prob": norm}
    return build_layer(MoE, D, 16, name="moe", n_experts=E, router=router, **options)


def every_output(moe: MoE, x_TD: Tensor) -> Tensor:
    """What each expert makes of each token [T, E, D]."""
    outputs = []
    experts = moe.experts
    assert isinstance(experts, StackedExperts)
    for gate_up, down in zip(experts.gate_up_EDF, experts.down_EFD, strict=True):
        gate, up = (x_TD @ gate_up).chunk(2, dim=-1)
        outputs.append((nn.functional.silu(gate) * up) @ down)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_against_the_dense_sum(reference_check: Callable[..., None], k: int, norm: bool) -> None:
    moe, x_TD, out_TD = layer(k, norm).train(), torch.randn(T, D), torch.randn(T, D)
    x_TD.requires_grad_()
    y_TD, _ = moe(x_TD, context_of(2, T // 2))
    names = ["gate", "gate_up", "down", "x"]
    leaves: list[Any] = [
        moe.router.gate.weight,
        moe.experts.gate_up_EDF,
        moe.experts.down_EFD,
        x_TD,
    ]
    ours = torch.autograd.grad((y_TD * out_TD).sum(), leaves)

    # Dense: every pair, with the expert's own gradient masked where it was not chosen.
    probs_TE = (x_TD @ moe.router.gate.weight.T).softmax(dim=-1)
    mask_TE = torch.zeros(T, E).scatter(1, probs_TE.topk(k).indices, 1.0)
    total_T1 = (probs_TE * mask_TE).sum(dim=1, keepdim=True) if norm else torch.ones(T, 1)
    weight_TE = probs_TE * mask_TE / total_T1 + probs_TE * (1 - mask_TE) / total_T1.detach()
    out_TED = every_output(moe, x_TD)
    out_TED.register_hook(lambda grad: grad * mask_TE[..., None])
    dense_TD = (weight_TE[..., None] * out_TED).sum(dim=1)
    theirs = torch.autograd.grad((dense_TD * out_TD).sum(), leaves, retain_graph=True)
    sparse_TD = ((weight_TE * mask_TE)[..., None] * out_TED).sum(dim=1)

    errors = {"output": (y_TD - sparse_TD).abs().max().item()}
    for name, one, other in zip(names, ours, theirs, strict=True):
        errors[f"gradient of {name}"] = ((one - other).abs().max() / other.abs().max()).item()
    for name, error in errors.items():
        reference_check(
            router="densemixer",
            against=f"dense sum over all experts, {name}, k={k}, norm={norm}",
            kind="own loop",
            tolerance=1e-5,
            error=error,
        )


def test_the_record_counts_only_the_chosen() -> None:
    moe, x_TD = layer(2, True).train(), torch.randn(T, D)
    routing = moe(x_TD, context_of(2, T // 2))[1][""]
    assert routing.taken.k == 2 and len(routing.taken.token_A) == 2 * T
    assert routing.load_E.sum() == routing.demand_E.sum() == 2 * T
    assert routing.ghost_TE is not None and not routing.ghost_TE.any()
    assert routing.detach().ghost_TE is None
    assert len(routing.with_ghosts()) == T * E


def test_evaluation_is_sparse() -> None:
    moe, x_TD = layer(2, True), torch.randn(T, D)
    trained_TD, _ = moe.train()(x_TD, context_of(2, T // 2))
    y_TD, routings = moe.eval()(x_TD, context_of(2, T // 2))
    assert routings[""].ghost_TE is None
    torch.testing.assert_close(y_TD, trained_TD)


def test_a_capacity_limit_does_not_reach_the_gradient() -> None:
    """Dropped pairs are computed for their gradient as well."""
    moe = layer(2, True, capacity={"factor": 0.5}).train()
    x_TD = torch.randn(T, D)
    y_TD, routings = moe(x_TD, context_of(2, T // 2))
    assert len(routings[""].taken.token_A) < 2 * T
    assert len(routings[""].with_ghosts()) == T * E
    y_TD.square().sum().backward()
    assert moe.router.gate.weight.grad is not None
    assert bool((moe.router.gate.weight.grad.abs().sum(dim=1) > 0).all())
