"""ZAYA1's router over three layers against transformers', and its bias against torch's Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import context_of

from router_lab.routers.zaya import Zaya
from router_lab.routing import Routing, StepTotals

B, S, D, R, N = 2, 32, 24, 12, 5
KINDS = ("ffn",) * N + ("zero",)


@pytest.fixture
def zaya_router() -> Any:
    return pytest.importorskip("transformers.models.zaya.modeling_zaya").ZayaRouter


def copied(ours: Zaya, reference: Any, layer: int) -> Any:
    config = SimpleNamespace(
        hidden_size=D,
        num_experts=N,
        num_experts_per_tok=1,
        router_hidden_size=R,
        rms_norm_eps=1e-5,
    )
    theirs = reference(config, layer)
    with torch.no_grad():
        theirs.down_proj.weight.copy_(ours.down.weight)
        theirs.down_proj.bias.copy_(ours.down.bias)
        if layer:
            theirs.router_states_scale.copy_(ours.decay_R)
        mlp = theirs.router_mlp
        mlp.norm.weight.copy_(ours.norm.weight)
        for one, other in zip((mlp.fc1, mlp.fc2), ours.hidden, strict=True):
            one.weight.copy_(other.weight)
            one.bias.copy_(other.bias)
        mlp.out_proj.weight.copy_(ours.out.weight)
        theirs.balancing_biases.copy_(ours.bias_E)
    return theirs


def test_three_layers(reference_check: Callable[..., None], zaya_router: Any) -> None:
    context = context_of(B, S)
    record: Routing | None = None
    state_BSR = None
    skipped = 0
    for layer in range(3):
        ours = Zaya(D, N + 1, d_router=R, kinds=KINDS)
        assert ours.bias_E.tolist() == [0.0] * N + [-1.0]
        with torch.no_grad():
            for p in ours.parameters():
                p.add_(0.3 * torch.randn_like(p))
            # Biases that let some tokens take the skip class.
            ours.bias_E.copy_(torch.randn(N + 1) * 0.05)
        theirs = copied(ours, zaya_router, layer)
        x_BSD = torch.randn(B, S, D)
        record = ours(x_BSD.flatten(0, 1), replace(context, layer=layer, previous=record))
        logits_TE, weight_T1, index_T1, state_BSR = theirs(x_BSD, router_states=state_BSR)
        # It hands skipped tokens to expert 0 with weight 0; in ours the last expert takes them.
        skip_T = record.taken.expert_A == N
        skipped += int(skip_T.sum())
        assert torch.where(skip_T, 0, record.taken.expert_A).equal(index_T1[:, 0])
        weight_T = torch.where(skip_T, 0.0, record.taken.weight_A)
        assert record.state is not None
        errors = {
            "weights": weight_T - weight_T1[:, 0],
            "logits": record.logits_TE - logits_TE,
            "carried state": record.state - state_BSR.flatten(0, 1),
        }
        for what, error in errors.items():
            reference_check(
                router="zaya",
                against=f"transformers ZayaRouter, layer {layer}, {what}",
                kind="independent",
                tolerance=1e-4,
                error=error.detach().abs().max(),
            )
    assert skipped > 0


def test_bias_is_adams(reference_check: Callable[..., None]) -> None:
    router = Zaya(D, N + 1, u=0.01, kinds=KINDS)
    bias_E = torch.nn.Parameter(torch.zeros(N))
    adam = torch.optim.Adam([bias_E], lr=0.01)
    for _ in range(20):
        demand_E = torch.randint(0, 50, (N + 1,))
        router.after_step(demand_E, StepTotals(int(demand_E.sum()), 1 / (N + 1)))
        bias_E.grad = demand_E[:N] / demand_E[:N].sum() - 1 / N
        adam.step()
    assert router.bias_E[N] == -1.0
    reference_check(
        router="zaya",
        against="torch.optim.Adam on load share − 1/E, 20 steps",
        kind="independent",
        tolerance=1e-6,
        error=(router.bias_E[:N] - bias_E.detach()).abs().max(),
    )


def test_bias_balances() -> None:
    router = Zaya(D, 8, u=0.01)
    x_TD, context = torch.randn(1024, D) + 1, context_of(1, 1024)
    start = router(x_TD, context).demand_E.max().item()
    for _ in range(200):
        router.after_step(router(x_TD, context).demand_E, StepTotals(1024, 1 / 8))
    assert router(x_TD, context).demand_E.max().item() < min(start, 1.3 * 1024 / 8)


def test_gradient_goes_down_through_the_state() -> None:
    lower, upper = Zaya(D, 8, k=2), Zaya(D, 8, k=2)
    context = context_of(1, 16)
    record = lower(torch.randn(16, D), context)
    upper(
        torch.randn(16, D), replace(context, previous=record)
    ).taken.weight_A.square().sum().backward()
    assert lower.down.weight.grad is not None and lower.down.weight.grad.any()
    assert upper.decay_R.grad is not None and upper.decay_R.grad.any()
