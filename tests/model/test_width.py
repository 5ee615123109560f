"""Solved widths, and budgets as text."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from every_layer import LAYERS, D
from hypothesis import given, strategies as st

from router_lab.errors import UserError
from router_lab.model.budget import (
    Budget,
    Match,
    solve_width,
)
from router_lab.model.ffn import FFN, FFNS, build_ffn


def layer_cost(kind: str, ffn: FFN) -> float:
    if kind == "total_params":
        return sum(p.numel() for p in ffn.parameters())
    return ffn.active_params() if kind == "active_params" else ffn.matmul_params()


@pytest.mark.parametrize("kind", ["active_params", "flops", "total_params"])
@pytest.mark.parametrize("name", LAYERS)
def test_solved_widths_are_within_one_percent(name: str, kind: str) -> None:
    d_model, d_ffn = 64, 1536  # so wide that an expert has room for eight of a kind
    config = LAYERS[name] | ({"seq_len": 256} if name == "soft_moe" else {})
    match = solve_width(kind, config, d_model, d_ffn)
    assert match is not None and match.solved
    dense = 3 * d_model * d_ffn
    assert match.target == dense
    actual = layer_cost(kind, build_ffn(dict(config), d_model, match.d_hidden))
    assert match.actual == actual
    assert abs(actual / dense - 1) <= 0.01
    assert match.error == pytest.approx(actual / dense - 1)


def test_every_kind_of_layer_is_solved_for() -> None:
    assert {config["name"] for config in LAYERS.values()} >= set(FFNS.names())


@given(
    n_experts=st.sampled_from([2, 4, 8, 16, 64]),
    k=st.integers(1, 4),
    n_shared=st.integers(0, 2),
    d_ffn=st.integers(64, 1024),
)
def test_no_other_width_is_much_nearer(n_experts: int, k: int, n_shared: int, d_ffn: int) -> None:
    router = {"name": "random_fixed", "k": min(k, n_experts)}
    config = {"name": "moe", "n_experts": n_experts, "n_shared": n_shared, "router": router}

    def error(width: int) -> Fraction:
        active = Fraction(build_ffn(dict(config), 16, width).active_params())
        return abs(active / (3 * 16 * d_ffn) - 1)

    match = solve_width("active_params", config, 16, d_ffn)
    assert match is not None
    around = [w for w in range(match.d_hidden - 9, match.d_hidden + 10) if w > 0]
    assert error(match.d_hidden) <= max(Fraction(1, 100), min(map(error, around)))


def test_multiples_of_eight_are_taken_where_they_are_near_enough() -> None:
    assert solve_width("active_params", {"name": "moe"}, 64, 4096).d_hidden % 8 == 0


def test_a_width_in_the_configuration_stays() -> None:
    config = {"name": "moe", "d_hidden": 40, "router": {"name": "round_robin", "k": 2}}
    match = solve_width("active_params", config, D, 100)
    assert match == Match("active_params", 300 * D, 240 * D, 40, solved=False)
    assert match.error == pytest.approx(-0.2)
    assert solve_width("none", config, D, 100) is None


@pytest.mark.parametrize(
    ("match", "ffn", "d_ffn", "words"),
    [
        ("params", {"name": "moe"}, 64, "active_params, flops, total_params, none"),
        ("total_params", {"name": "moe", "n_experts": 500}, 64, "fewer experts"),
        ("flops", {"name": "autonomy"}, 16, "a larger model.d_ffn"),
        ("flops", {"name": "moe", "expert": {"name": "mlp", "d_hidden": 8}}, 64, "ffn.expert"),
    ],
)
def test_what_cannot_be_solved_is_refused(
    match: str, ffn: dict[str, Any], d_ffn: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        solve_width(match, ffn, D, d_ffn)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("tokens:20M", "tokens", 20e6),
        ("tokens:400k", "tokens", 400e3),
        ("tokens:1_000_000", "tokens", 1e6),
        ("tokens:1.5B", "tokens", 1.5e9),
        ("flops:1e15", "flops", 1e15),
        ("flops:2.5T", "flops", 2.5e12),
        ("FLOPS:3E+2G", "flops", 3e11),
        ("seconds:600", "seconds", 600.0),
        ("seconds:0.5", "seconds", 0.5),
    ],
)
def test_budgets_are_parsed(text: str, kind: str, amount: float) -> None:
    assert Budget.parse(text) == Budget(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["20M", "tokens", "tokens:", "tokens:0", "tokens:-5", "tokens:1e999", "tokens:20 M", "hours:3",
     "tokens:1.2.3", "tokens:.", "tokens:20MB", "seconds:ten", "", None, 5],
)  # fmt: skip
def test_other_budgets_are_refused(text: object) -> None:
    with pytest.raises(UserError, match=r"tokens:20M, flops:1e15 or seconds:600"):
        Budget.parse(text)


@given(amount=st.integers(1, 10**9), per_step=st.integers(1, 10**5), flops=st.floats(1, 1e9))
def test_a_budget_is_reached_by_its_last_step(amount: int, per_step: int, flops: float) -> None:
    steps = Budget("tokens", amount).steps(per_step, flops)
    assert steps == max(1, math.ceil(amount / per_step))
    steps = Budget("flops", amount * flops).steps(per_step, flops)
    assert steps is not None and steps * per_step * flops >= amount * flops * (1 - 1e-9)
    assert steps == 1 or (steps - 1) * per_step < amount * (1 + 1e-9)
    assert Budget("seconds", amount).steps(per_step, flops) is None
