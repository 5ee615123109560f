"""Engines against a loop over assignments, in output and in every gradient."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, strategies as st
from torch import Tensor

from router_lab.errors import UserError
from router_lab.model import engines
from router_lab.model.dispatch import Plan
from router_lab.model.engines import ENGINES, Engine, engine_for
from router_lab.model.experts import StackedExperts
from router_lab.model.ffn import ACTIVATIONS, SLOPES, Gated, build_ffn
from router_lab.registry import register
from router_lab.routing import Assignments

OURS = ("cached", "grouped", "padded")


@dataclass
class Case:
    """A layer's input: tokens, weights and assignments of any number per token."""

    x_TD: Tensor
    weights: tuple[Tensor, ...]
    assignments: Assignments
    act: str
    E: int

    def run(self, engine: str) -> tuple[Tensor, ...]:
        """Output and gradients of x, combine weights and experts."""
        T = len(self.x_TD)
        plan = Plan(self.assignments, T, self.E)
        return self._with_gradients(
            lambda: ENGINES.get(engine)()(self.x_TD, Gated(self.act, *self.weights), plan)
        )

    def loop(self) -> tuple[Tensor, ...]:
        up, down, *biases = self.weights
        up_bias, down_bias = biases or (torch.zeros(self.E, 1), torch.zeros(self.E, 1))

        def y() -> Tensor:
            rows = [0 * x for x in self.x_TD]
            a = self.assignments
            for t, e, w in zip(a.token_A.tolist(), a.expert_A.tolist(), a.weight_A, strict=True):
                if e < self.E:
                    gate, u = (self.x_TD[t] @ up[e] + up_bias[e]).chunk(2)
                    rows[t] = rows[t] + w * (
                        (ACTIVATIONS[self.act](gate) * u) @ down[e] + down_bias[e]
                    )
            return torch.stack(rows)

        return self._with_gradients(y)

    def _with_gradients(self, of: Any) -> tuple[Tensor, ...]:
        inputs = [self.x_TD, self.assignments.weight_A, *self.weights]
        y_TD = of()
        probe_TD = torch.linspace(-1, 1, y_TD.numel(), dtype=y_TD.dtype).view_as(y_TD)
        grads = torch.autograd.grad(y_TD, inputs, probe_TD, allow_unused=True)
        zeros = (torch.zeros_like(t) for t in inputs)
        pairs = zip(grads, zeros, strict=True)
        return (y_TD, *(zero if grad is None else grad for grad, zero in pairs))


def case(
    T: int,
    E: int,
    k: int | None,
    seed: int = 0,
    *,
    one: bool = False,
    special: int = 0,
    biases: bool = False,
    act: str = "silu",
    D: int = 8,
    F: int = 12,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """k None: some pairs at random, in no order. one: expert E−1 has everything. special: further
    experts that the engine leaves out."""
    torch.manual_seed(seed)
    N = E + special
    if k is None:
        pair_A = (torch.rand(T, N) < 1.5 / N).flatten().nonzero().squeeze(1)
        pair_A = pair_A[torch.randperm(len(pair_A))]
        token_A, expert_A = pair_A // N, pair_A % N
    else:
        token_A = torch.arange(T).repeat_interleave(k)
        expert_A = torch.rand(T, N).argsort(1)[:, :k].flatten()
    if one:
        expert_A = torch.full_like(expert_A, E - 1)
    shapes = [(E, D, 2 * F), (E, F, D)] + ([(E, 2 * F), (E, D)] if biases else [])
    return Case(
        torch.randn(T, D, dtype=dtype, requires_grad=True),
        tuple((torch.randn(*s, dtype=dtype) * 0.3).requires_grad_() for s in shapes),
        Assignments(
            token_A=token_A,
            expert_A=expert_A,
            weight_A=torch.randn(len(token_A), dtype=dtype).requires_grad_(),
            rank_A=torch.zeros_like(token_A),
            n_experts=N,
            k=k,
        ),
        act,
        E,
    )


@given(
    T=st.integers(1, 40),
    E=st.sampled_from((1, 2, 3, 7, 8, 64, 256)),
    k=st.sampled_from((None, 1, 2, 5)),
    one=st.booleans(),
    special=st.sampled_from((0, 0, 3)),
    biases=st.booleans(),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    engine=st.sampled_from(OURS),
    tile=st.sampled_from((1, 2**19)),
    seed=st.integers(0, 10**6),
)
@example(40, 1, 1, True, 0, False, "silu", "grouped", 2**19, 0)
@example(40, 256, 2, False, 0, True, "silu", "cached", 2**19, 0)
@example(40, 256, 5, False, 3, True, "gelu", "padded", 2**19, 0)
@example(1, 8, None, False, 3, True, "relu2", "grouped", 2**19, 1)
@example(1, 1, None, False, 3, True, "gelu", "grouped", 2**19, 0)
def test_every_engine_is_the_loop(
    T: int,
    E: int,
    k: int | None,
    one: bool,
    special: int,
    biases: bool,
    act: str,
    engine: str,
    tile: int,
    seed: int,
) -> None:
    """Empty experts, one with everything, tokens without an expert; some layers in many tiles."""
    k = None if k is not None and k > E + special else k
    given = case(T, E, k, seed, one=one, special=special, biases=biases, act=act)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "TILE", tile)
        ours = given.run(engine)
    for got, want in zip(ours, given.loop(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_a_tile_has_no_more_rows_than_fit() -> None:
    """One expert with 200 rows in tiles of 64: its gradients add up over them."""
    given = case(100, 2, 2, one=True)
    plan = Plan(given.assignments, 100, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "TILE", 1)
        rows = [tile.rows for tile in engines._tiles(plan, 96)]
        got = given.run("cached")
    ends = [0, 64, 128, 192, 200]
    assert rows == [slice(0, 0), *(slice(*pair) for pair in itertools.pairwise(ends))]
    for ours, want in zip(got, given.run("padded"), strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["cached", "padded"])
@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_gradients_in_float64(engine: str, k: int | None, act: str) -> None:
    given = case(5, 4, k, 1, special=1, biases=True, act=act, D=3, F=2, dtype=torch.double)
    inputs = (given.x_TD, given.assignments.weight_A, *given.weights)

    def y(x_TD: Tensor, weight_A: Tensor, *weights: Tensor) -> Tensor:
        a = given.assignments
        same = Assignments(a.token_A, a.expert_A, weight_A, a.rank_A, a.n_experts, a.k)
        return ENGINES.get(engine)()(x_TD, Gated(act, *weights), Plan(same, 5, 4))

    assert torch.autograd.gradcheck(y, inputs)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_slopes_are_those_of_autograd(act: str) -> None:
    x = torch.linspace(-4, 4, 64, dtype=torch.double, requires_grad=True)
    value = ACTIVATIONS[act](x)
    (want,) = torch.autograd.grad(value.sum(), x)
    got_value, got_slope = SLOPES[act](x.detach())
    torch.testing.assert_close(got_value, value.detach())
    torch.testing.assert_close(got_slope, want)
    assert SLOPES.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("engine", OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_close_to_float32(engine: str, dtype: torch.dtype) -> None:
    exact = case(32, 4, 2, D=8, F=16)
    low = case(32, 4, 2, D=8, F=16)
    low.x_TD = low.x_TD.detach().to(dtype).requires_grad_()
    low.weights = tuple(t.detach().to(dtype).requires_grad_() for t in low.weights)
    for got, want in zip(low.run(engine), exact.loop(), strict=True):
        assert got.dtype in (dtype, torch.float32)
        assert (got.float() - want).abs().max() < 0.05 * want.abs().max().clamp_min(1)


def test_the_fastest_is_chosen() -> None:
    """By the hidden values per expert, here 2 · 64 · 4 bytes a row; never one that refuses."""

    def chosen(n_rows: int, **shape: Any) -> Engine:
        given = case(1, 4, 1, **{"D": 8, "F": 64, **shape})
        return engine_for(None, Gated("silu", *given.weights), n_rows)

    assert chosen(4 * 511) is engines.GROUPED and chosen(4 * 512) is engines.CACHED
    assert chosen(4, F=63) is chosen(4, dtype=torch.double) is engines.CACHED
    for dtype, F, want in (
        (torch.bfloat16, 64, engines.GROUPED),
        (torch.bfloat16, 60, engines.PADDED),
        (torch.float32, 64, engines.PADDED),
    ):
        weights = [torch.empty(4, *s, dtype=dtype, device="meta") for s in ((8, 2 * F), (F, 8))]
        assert engine_for(None, Gated("silu", *weights), 8) is want


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"engine": "grouped", "expert": {"name": "mlp", "d_hidden": 5}}, "multiples of 4"),
        ({"engine": "quick"}, "no engine named 'quick'"),
        ({"engine": "cached", "expert": {"name": "moe", "n_experts": 2}}, "ffn.expert=moe"),
    ],
    ids=str,
)
def test_refused(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_ffn({"name": "moe", "n_experts": 2, **config}, 8, 8)


def test_an_engine_of_someone_else() -> None:
    @register("zeros")
    class Zeros(Engine):
        def __call__(self, x_TD: Tensor, experts: Gated, plan: Plan) -> Tensor:
            return torch.zeros_like(x_TD)

    try:
        experts = StackedExperts(Gated.random(2, 4, 4), "zeros")
        given = case(3, 2, 1, D=4)
        y_TD, _ = experts(given.x_TD, given.assignments, None)
    finally:
        del ENGINES._classes["zeros"]
    assert (y_TD == 0).all()


@pytest.mark.parametrize("k", [2, None])
def test_cached_keeps_one_pair_of_hidden_values_per_row(k: int | None) -> None:
    """Saved for the backward pass: what comes in, and gate and up of each row."""
    given = case(64, 4, k, D=8, F=16)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.data_ptr()] = t.nbytes
        return t

    plan = Plan(given.assignments, 64, 4)
    incoming = (given.x_TD, given.assignments.weight_A, *given.weights)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        engines.CACHED(given.x_TD, Gated("silu", *given.weights), plan)
    R = len(given.assignments)
    most = sum(t.nbytes for t in incoming) + 4 * R * (2 * 16 + 1)
    assert sum(saved.values()) <= most
