"""LongCat-Flash: router and whole layer against transformers', and the bias by a loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import build_layer, context_of

from router_lab.model.ffns.moe import MoE
from router_lab.routers.longcat import LongCat
from router_lab.routing import StepTotals

T, D, F, N, Z, K, SCALE = 64, 16, 8, 6, 3, 3, 2.5
KINDS = ("ffn",) * N + ("copy",) * Z


def layer() -> MoE:
    router = {"name": "longcat", "k": K, "scale": SCALE}
    config = {"name": "moe", "n_experts": N, "special": {"copy": Z}, "router": router}
    moe = build_layer(MoE, D, F, **config)
    with torch.no_grad():
        moe.router.bias_E.copy_(torch.randn(N + Z) * 0.1)
    return moe


@pytest.fixture
def theirs() -> Any:
    module = pytest.importorskip("transformers.models.longcat_flash.modeling_longcat_flash")
    names = {
        "num_experts_per_tok": K,
        "num_local_experts": N,
        "hidden_size": D,
        "n_routed_experts": N,
        "zero_expert_num": Z,
        "routed_scaling_factor": SCALE,
        "expert_ffn_hidden_size": F,
        "hidden_act": "silu",
    }
    return module.LongcatFlashMoE(SimpleNamespace(**names))


def test_layer(reference_check: Callable[..., None], theirs: Any) -> None:
    ours = layer()
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(ours.router.gate.weight)
        theirs.router.e_score_correction_bias.copy_(ours.router.bias_E)
        theirs.experts.gate_up_proj[:N].copy_(ours.experts.gate_up_EDF.transpose(1, 2))
        theirs.experts.down_proj.copy_(ours.experts.down_EFD.transpose(1, 2))
    x_TD = torch.randn(T, D)
    y_TD, routings = ours(x_TD, context_of(2, T // 2))
    _, weight_TK, index_TK = theirs.router(x_TD)
    routing = routings[""]
    assert routing.kinds == KINDS
    weight_TE = torch.zeros(2, T, N + Z)
    weight_TE[0, routing.taken.token_A, routing.taken.expert_A] = routing.taken.weight_A.detach()
    weight_TE[1].scatter_(1, index_TK, weight_TK.detach())
    assert weight_TE[0, :, N:].any()  # some tokens take an identity expert
    for what, error in {
        "weights": (weight_TE[0] - weight_TE[1]).abs().max(),
        "output of the layer": (y_TD - theirs(x_TD[None])[0]).detach().abs().max(),
    }.items():
        reference_check(
            router="longcat",
            against=f"transformers LongcatFlashMoE with identity experts, {what}",
            kind="independent",
            tolerance=1e-5,
            error=error,
        )


def test_bias_update_by_a_loop(reference_check: Callable[..., None]) -> None:
    router = LongCat(D, N + Z, k=K, k_ffn=1.8, u=0.01, kinds=KINDS)
    bias = [0.0] * (N + Z)
    for _ in range(5):
        demand_E = torch.randint(0, 100, (N + Z,))
        n_tokens = int(demand_E.sum()) // K
        router.after_step(demand_E, StepTotals(n_tokens, K / (N + Z)))
        for i in range(N):
            mu = 0.01 * K * N / 1.8
            bias[i] += mu * (1.8 / K / N - demand_E[i].item() / (K * n_tokens))
    error = max(abs(a - b) for a, b in zip(router.bias_E.tolist(), bias, strict=True))
    reference_check(
        router="longcat",
        against="the bias update by a loop",
        kind="own loop",
        tolerance=1e-6,
        error=error,
    )


def test_the_bias_steers_the_number_of_ffn_experts() -> None:
    router = LongCat(D, N + Z, k=K, k_ffn=2.5, u=0.005, kinds=KINDS)
    x_TD, context = torch.randn(512, D), context_of(1, 512)
    for _ in range(400):
        routing = router(x_TD, context)
        router.after_step(routing.demand_E, StepTotals(512, K / (N + Z)))
    share_E = router(x_TD, context).demand_E / 512
    assert share_E[:N].sum().item() == pytest.approx(2.5, abs=0.1)
    assert share_E[:N].max() < 1.2 * 2.5 / N
    assert not router.bias_E[N:].any()


def test_counts_what_a_token_meets() -> None:
    assert layer().active_params() == pytest.approx(K * N / (N + Z) * 3 * D * F + D * (N + Z))
