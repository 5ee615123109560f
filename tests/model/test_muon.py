"""Muon: against torch's, stacks against their matrices, turns, and which parameter is whose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from router_lab.model.muon import JORDAN, POLYNOMIALS, MuonAdamW, Polynomials, whitener
from router_lab.model.optim import AdamW, Muon, by_role
from router_lab.model.transformer import ModelOptions, Transformer

V, S = 17, 12


def model_of(ffn: dict[str, Any], **options: Any) -> Transformer:
    size = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ffn": 24, "seq_len": S, **options}
    return Transformer(V, ffn, ModelOptions(**size), d_hidden=8)


def optimiser_of(parameters: list[nn.Parameter], **options: Any) -> MuonAdamW:
    """Of hidden matrices alone; all move at each step."""
    module = nn.ParameterList(parameters)
    options = {"momentum": 0.95, "every": 1, **options}
    built = Muon(lr=0.02, weight_decay=0.1, **options).build(module, fused=False)
    assert isinstance(built, MuonAdamW)
    return built


def orthogonalised(x_BNM: Tensor, polynomials: Polynomials) -> Tensor:
    return whitener(x_BNM @ x_BNM.mT, polynomials) @ x_BNM


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    return [torch.randn(shape) * 10.0**-i for i in range(steps)]


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon orthogonalises in bfloat16, always."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24), (5, 7)], ids=str)
def test_a_matrix_moves_as_by_torch(shape: tuple[int, int]) -> None:
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    muon = optimiser_of([ours], iterations=5)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)
    for grad in gradients(shape, 6):
        ours.grad, theirs.grad = grad, grad.clone()
        muon.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16)], ids=str)
def test_stacked_experts_move_as_each_would_alone(shape: tuple[int, int, int]) -> None:
    """They are stored [in, out], a matrix of nn.Linear [out, in]."""
    stacked = nn.Parameter(torch.randn(shape))
    alone = [nn.Parameter(expert.detach().T.clone()) for expert in stacked]
    muon = optimiser_of([stacked], iterations=5)
    reference = torch.optim.Muon(alone, lr=0.02, weight_decay=0.1)
    for grad in gradients(shape, 4):
        stacked.grad = grad
        for expert, part in zip(alone, grad, strict=True):
            expert.grad = part.T.clone()
        muon.step()
        reference.step()
    for expert, part in zip(alone, stacked, strict=True):
        torch.testing.assert_close(part.T, expert, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("iterations", "low", "error"), [(3, 0.02, 0.094), (4, 0.003, 0.199)])
@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1.0, 1e5])
def test_singular_values_come_near_one(
    iterations: int, low: float, error: float, scale: float
) -> None:
    """From `low` times the bound on the largest, (Σ s⁸)^⅛, on."""
    u, _, v = torch.linalg.svd(torch.randn(4, 12, 30, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(math.log10(1.1 * low), 0, 12, dtype=torch.float64)
    assert low * s.pow(8).sum().pow(1 / 8) < s[0]
    x_BNM = (u * s @ v * scale).float()
    moved = torch.linalg.svdvals(orthogonalised(x_BNM, POLYNOMIALS[iterations]).double())
    assert moved.max() < 1 + error and moved.min() > 1 - error


@pytest.mark.parametrize("polynomials", [*POLYNOMIALS.values()], ids=len)
def test_a_gradient_of_zero_or_of_rank_one_is_no_trouble(polynomials: Any) -> None:
    assert not orthogonalised(torch.zeros(2, 8, 8), polynomials).any()
    rank_one = torch.outer(torch.randn(8), torch.randn(20))[None]
    moved = torch.linalg.svdvals(orthogonalised(rank_one, polynomials))
    assert 0.6 < moved[0, 0] < 1.25 and moved[0, 1] < 1e-4


def test_matrices_take_turns() -> None:
    """With every=3, a matrix moves at each third step, three times as far, whichever has no
    gradient."""
    weights = [nn.Parameter(torch.randn(2, 6, 9)), nn.Parameter(torch.randn(9, 6))]
    weights += [nn.Parameter(torch.randn(9, 6))]
    muon = optimiser_of(weights, every=3, momentum=0.0)
    moved = []
    for step in range(6):
        before = [w.detach().clone() for w in weights]
        for w in weights:
            w.grad = torch.randn_like(w)
        if step >= 3:
            weights[1].grad = None
        muon.step()
        flat = [m for w, b in zip(weights, before, strict=True) for m in (w - b).reshape(-1, 54)]
        moved.append([i for i, m in enumerate(flat) if m.any()])
    assert moved == [[0, 3], [1], [2], [0, 3], [1], []]


def test_a_turn_is_as_long_as_the_steps_between() -> None:
    once, often = (nn.Parameter(torch.ones(6, 9)) for _ in range(2))
    slow = optimiser_of([once], every=2, momentum=0.0)
    fast = optimiser_of([often], momentum=0.0)
    once.grad = often.grad = torch.randn(6, 9)
    slow.step()
    fast.step()
    torch.testing.assert_close(once - 1, 2 * (often - 1))


ROLES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "mlp": ({}, ["attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"], []),
    "moe": (
        {"n_experts": 4, "n_shared": 1, "shared_combine": "gate", "special": {"constant": 1}},
        ["experts.gate_up_EDF", "experts.down_EFD", "shared.gate_up", "shared.down"],
        ["router.gate", "shared_gate", "special.0.mix"],
    ),
    "soft_moe": ({"n_experts": 4, "seq_len": S}, ["gate_up_EDF", "down_EFD"], ["slot_ND"]),
    "mixture_of_depths": (
        {"share": 0.5},
        ["expert.gate_up", "expert.down"],
        ["ffn.gate", "predictor.0", "predictor.2"],
    ),
    "autonomy": ({"n_experts": 4}, ["up_ELF", "value_EDF", "out_EFD"], ["low"]),
    "nested": (
        {"name": "moe", "n_experts": 4, "expert": {"name": "moe", "n_experts": 2}},
        ["experts.experts.0.experts.gate_up_EDF"],
        ["ffn.router.gate", "experts.experts.3.router.gate"],
    ),
    "zaya": (
        {"name": "moe", "n_experts": 4, "router": {"name": "zaya"}},
        ["experts.down_EFD"],
        ["router.down", "router.hidden.0", "router.out"],
    ),
    "cosine": (
        {"name": "moe", "n_experts": 4, "router": {"name": "cosine"}},
        ["experts.down_EFD"],
        ["router.project", "router.expert_EP"],
    ),
}


@pytest.mark.parametrize("name", ROLES)
def test_parameters_go_by_the_rule(name: str) -> None:
    ffn, matrices, gates = ROLES[name]
    model = model_of({"name": name, **ffn}, tied=False)
    names = {id(p): key for key, p in model.named_parameters()}
    roles = {role: [names[id(p)] for p in group] for role, group in by_role(model).items()}
    assert sorted(name for group in roles.values() for name in group) == sorted(names.values())
    assert roles["embedding"] == ["embedding.weight"] and roles["head"] == ["unembedding.weight"]
    for part in matrices:
        assert any(part in key for key in roles["matrices"]), part
    for part in gates:
        assert any(part in key for key in roles["gates"]), part
        assert not any(part in key for key in roles["matrices"]), part
    assert all(model.get_parameter(key).dim() < 2 for key in roles["vectors"])


def test_each_role_has_its_rate_and_its_decay() -> None:
    model = model_of({"name": "moe", "n_experts": 4}, tied=False)
    muon = Muon(lr=0.02, adamw_lr=0.003, embedding_lr=0.1, head_lr=0.01, weight_decay=0.2)
    rates = {g["role"]: (g["lr"], g["weight_decay"]) for g in muon.build(model, True).param_groups}
    assert rates == {
        "embedding": (0.1, 0.0),
        "matrices": (0.02, 0.2),
        "gates": (0.003, 0.0),
        "vectors": (0.003, 0.0),
        "head": (0.01, 0.0),
    }
    adamw = AdamW(lr=0.003, embedding_lr=0.1)
    rates = {g["role"]: (g["lr"], g["weight_decay"]) for g in adamw.build(model, True).param_groups}
    assert rates == {
        "embedding": (0.1, 0.1),
        "matrices": (0.003, 0.1),
        "gates": (0.003, 0.1),
        "vectors": (0.003, 0.0),
        "head": (0.003, 0.1),
    }


def test_what_is_not_a_matrix_moves_as_by_adamw() -> None:
    """Also where the same optimiser moves matrices."""
    model, other = (model_of({"name": "moe", "n_experts": 4}, tied=False) for _ in range(2))
    muon = Muon(adamw_lr=0.003, every=1).build(model, fused=False)
    rest = [p for role, group in by_role(other).items() if role != "matrices" for p in group]
    adamw = torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(3):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = q.grad = torch.randn_like(p)
        muon.step()
        adamw.step()
    for role, group in by_role(model).items():
        for p, q in zip(group, by_role(other)[role], strict=True):
            assert p.equal(q) == (role != "matrices")


def test_the_closure_runs_before_the_step() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    muon = optimiser_of([weight])

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert muon.step(closure) == 12.0
    assert not weight.equal(torch.ones(3, 4))


def test_jordans_polynomials_are_torchs() -> None:
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS

    assert JORDAN == ((DEFAULT_A, DEFAULT_B, DEFAULT_C),) * DEFAULT_NS_STEPS
