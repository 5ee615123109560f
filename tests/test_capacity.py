"""The capacity stage against a loop that fills the experts one assignment at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers import context_of
from hypothesis import given, strategies as st
from torch import Tensor

from router_lab.capacity import Capacity, Order, Scope, build_capacity
from router_lab.errors import UserError
from router_lab.routing import ROUTERS, Routing


def routed(B: int, S: int, E: int, k: int | None, seed: int) -> Routing:
    """Routing of random scores with many ties; k None gives any number of experts per token."""
    generator = torch.Generator().manual_seed(seed)
    probs_TE = torch.randint(1, 5, (B * S, E), generator=generator).float()
    probs_TE = probs_TE / probs_TE.sum(1, keepdim=True)
    context = context_of(B, S)
    known: dict[str, Any] = {"logits_TE": probs_TE, "probs_TE": probs_TE, "context": context}
    if k is None:
        mask_TE = torch.rand(B * S, E, generator=generator) < 0.5
        routing = Routing.from_mask(mask_TE, probs_TE, **known)
        asked = routing.asked.keep(torch.randperm(len(routing.asked), generator=generator))
        return replace(routing, asked=asked, taken=asked)
    index_TK = probs_TE.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Routing.from_topk(index_TK, probs_TE.gather(1, index_TK), **known)


def served(routing: Routing, factor: float, order: Order, scope: Scope) -> set[tuple[int, int]]:
    """The (token, expert) pairs that find room, by a queue and a counter for each expert."""
    tokens, experts = routing.taken.token_A.tolist(), routing.taken.expert_A.tolist()
    weights, choices = routing.taken.weight_A.tolist(), routing.taken.rank_A.tolist()
    surest = routing.probs_TE.max(dim=1).values.tolist()
    sequence = routing.context.sequence_T.tolist()
    keys = {
        "position": lambda a: (choices[a], tokens[a]),
        "probability": lambda a: (-weights[a], tokens[a], choices[a]),
        "priority": lambda a: (choices[a], -surest[tokens[a]], tokens[a]),
    }
    pools: dict[int, list[int]] = {}
    for a, token in enumerate(tokens):
        pools.setdefault(sequence[token] if scope == "sequence" else 0, []).append(a)
    kept = set()
    for pool in pools.values():
        # The factor as written, so that 1.1 · 10 / 1 is 11 and not a little more.
        room = math.ceil(Fraction(str(factor)) * len(pool) / routing.n_experts)
        left = [room] * routing.n_experts
        for a in sorted(pool, key=keys[order]):
            if left[experts[a]] > 0:
                left[experts[a]] -= 1
                kept.add((tokens[a], experts[a]))
    return kept


@given(
    B=st.integers(1, 3),
    S=st.integers(1, 9),
    E=st.integers(1, 6),
    k=st.one_of(st.none(), st.integers(1, 6)),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.1, 1.25, 2.0]),
    order=st.sampled_from(["position", "probability", "priority"]),
    scope=st.sampled_from(["batch", "sequence"]),
    seed=st.integers(0, 10**6),
)
def test_queue(
    B: int, S: int, E: int, k: int, factor: float, order: Order, scope: Scope, seed: int
) -> None:
    k = None if k is None else min(k, E)
    before = routed(B, S, E, k, seed)
    after = Capacity(factor, order, scope)(before)
    pairs = list(zip(after.taken.token_A.tolist(), after.taken.expert_A.tolist(), strict=True))
    assert set(pairs) == served(before, factor, order, scope)
    assert len(set(pairs)) == len(pairs)
    # What survives keeps weight, choice and place in the list; the demand counts the dropped too.
    weight = dict(
        zip(
            zip(before.taken.token_A.tolist(), before.taken.expert_A.tolist(), strict=True),
            zip(before.taken.weight_A.tolist(), before.taken.rank_A.tolist(), strict=True),
            strict=True,
        )
    )
    assert [weight[pair] for pair in pairs] == list(
        zip(after.taken.weight_A.tolist(), after.taken.rank_A.tolist(), strict=True)
    )
    assert torch.equal(after.demand_E, before.demand_E)
    dropped_E = before.load_E - after.load_E
    assert (dropped_E >= 0).all()
    if k is not None:
        assert torch.equal(before.demand_E, after.load_E + dropped_E)
        if scope == "batch":
            assert after.load_E.max() <= math.ceil(Fraction(str(factor)) * k * B * S / E)


@given(
    order=st.sampled_from(["position", "probability", "priority"]),
    k=st.one_of(st.none(), st.integers(1, 4)),
    seed=st.integers(0, 10**6),
)
def test_renormalised_weights_keep_a_token_s_sum(order: Order, k: int, seed: int) -> None:
    before = routed(2, 8, 4, k, seed)
    after = Capacity(0.6, order, renormalize=True)(before)
    plain = Capacity(0.6, order)(before)

    def sums(routing: Routing) -> Tensor:
        return torch.zeros(16).index_add(0, routing.taken.token_A, routing.taken.weight_A)

    alive_T = sums(plain) > 0
    torch.testing.assert_close(sums(after)[alive_T], sums(before)[alive_T])
    assert (sums(after)[~alive_T] == 0).all()
    # Within a token the proportions stay.
    scale_A = after.taken.weight_A / plain.taken.weight_A
    scale_T = torch.zeros(16).index_add(0, after.taken.token_A, scale_A)
    alone_T = torch.bincount(after.taken.token_A, minlength=16)
    torch.testing.assert_close(scale_A, (scale_T / alone_T.clamp_min(1))[after.taken.token_A])


def test_worked_example() -> None:
    """Four tokens, two experts, both asked for by all; room for ceil(0.5 · 8 / 2) = 2 each.

    Tokens 0, 1 and 3 prefer expert 0, token 2 expert 1.
    """
    probs_TE = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    context = context_of(1, 4)
    weight_TK, index_TK = probs_TE.topk(2)
    routing = Routing.from_topk(
        index_TK, weight_TK, logits_TE=probs_TE, probs_TE=probs_TE, context=context
    )

    def kept(order: Order) -> dict[int, list[int]]:
        after = Capacity(0.5, order)(routing)
        return {e: after.taken.token_A[after.taken.expert_A == e].tolist() for e in (0, 1)}

    # Expert 1: its one first choice (token 2), then the first of the second choices.
    assert kept("position") == {0: [0, 1], 1: [0, 2]}
    # Surest first: 2 (0.9), 3 (0.8), 1 (0.7), 0 (0.6).
    assert kept("priority") == {0: [1, 3], 1: [2, 3]}
    # By weight: expert 0 has 0.8, 0.7; expert 1 has 0.9, 0.4.
    assert kept("probability") == {0: [1, 3], 1: [0, 2]}


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_room_for_k_whatever_the_router_asked_for(scope: Scope) -> None:
    """9 tokens in 3 sequences, 2 experts, all tokens to expert 0: room for ceil(2 · 0.5 · 9 / 2)
    of a batch, ceil(2 · 0.5 · 3 / 2) of a sequence."""
    context = context_of(3, 3)
    probs_TE = torch.tensor([[1.0, 0.0]]).expand(9, 2)
    index_T1, weight_T1 = torch.zeros(9, 1, dtype=torch.long), torch.ones(9, 1)
    routing = Routing.from_topk(
        index_T1, weight_T1, logits_TE=probs_TE, probs_TE=probs_TE, context=context
    )
    kept = Capacity(0.5, scope=scope, k=2)(routing).taken.token_A.tolist()
    assert kept == ([0, 1, 2, 3, 4] if scope == "batch" else [0, 1, 3, 4, 6, 7])


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize(
    ("eval_factor", "load"), [(None, 2), (0.5, 2), (1.0, 4), (2.0, 8), (math.inf, 16)]
)
def test_evaluation_has_a_factor_of_its_own(
    scope: Scope, eval_factor: float | None, load: Any
) -> None:
    """16 tokens of one sequence, all to the first of 4 experts: room for 4 per unit of factor."""
    context = context_of(1, 16)
    probs_TE = torch.eye(4)[:1].expand(16, 4)
    routing = Routing.from_topk(
        torch.zeros(16, 1, dtype=torch.long),
        torch.ones(16, 1),
        logits_TE=probs_TE,
        probs_TE=probs_TE,
        context=context,
    )
    capacity = Capacity(0.5, scope=scope, eval_factor=eval_factor)
    assert capacity(routing).load_E.tolist() == [2, 0, 0, 0]
    assert capacity.eval()(routing).load_E.tolist() == [load, 0, 0, 0]


@pytest.mark.parametrize(
    ("router", "in_training", "in_evaluation"),
    [
        ({"name": "switch"}, 1.25, 2.0),
        ({"name": "switch", "eval_factor": None}, 1.25, 1.25),
        ({"name": "gshard"}, 1.0, 2.0),
        ({"name": "vmoe"}, 1.05, 1.05),
        ({"name": "capacity"}, 1.25, 1.25),
        ({"name": "capacity", "eval_factor": 3.0}, 1.25, 3.0),
        ({"name": "moepp", "capacity_factor": 1.1}, 1.1, math.inf),
    ],
    ids=str,
)
def test_factor_of_each_router(router: Any, in_training: float, in_evaluation: float) -> None:
    """200 tokens with equal logits, so that each has the same k of 8 experts."""
    built: Any = ROUTERS.build(router, d_model=8, n_experts=8)
    for parameter in built.parameters():
        torch.nn.init.zeros_(parameter)
    context = context_of(1, 200)
    for factor, training in ((in_training, True), (in_evaluation, False)):
        routing = built.train(training)(torch.zeros(200, 8), context)
        load_E = built.capacity(routing).load_E
        room = math.ceil(200 if math.isinf(factor) else Fraction(str(factor)) * built.mean_k * 25)
        assert load_E.max() == min(room, 200)


def test_gradient_flows_through_survivors_alone() -> None:
    before = routed(1, 8, 4, 2, 0)
    weight_A = before.taken.weight_A.clone().requires_grad_()
    asked = replace(before.asked, weight_A=weight_A)
    after = Capacity(0.5)(replace(before, asked=asked, taken=asked))
    (grad_A,) = torch.autograd.grad(after.taken.weight_A.sum(), weight_A)
    alive = set(zip(after.taken.token_A.tolist(), after.taken.expert_A.tolist(), strict=True))
    pairs = zip(before.taken.token_A.tolist(), before.taken.expert_A.tolist(), strict=True)
    assert grad_A.tolist() == [float(pair in alive) for pair in pairs]
    assert 0 < grad_A.sum() < len(grad_A)


@pytest.mark.parametrize(
    "option",
    [
        {"factor": 0},
        {"eval_factor": 0},
        {"k": 0},
        {"tau": 0},
        {"order": "luck"},
        {"scope": "world"},
    ],
    ids=str,
)
def test_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"capacity.{next(iter(option))}="):
        build_capacity(option)


@given(
    n_experts=st.integers(1, 4),
    n_zero=st.integers(0, 2),
    k=st.integers(1, 3),
    own_k=st.sampled_from([None, 1.0, 2.0]),
    factor=st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0, 8.0, math.inf]),
    eval_factor=st.sampled_from([0.5, 1.0, 2.0, 4.0, math.inf]),
    tau=st.sampled_from([0.5, 1.0, 2.0]),
    scope=st.sampled_from(["batch", "sequence"]),
    order=st.sampled_from(["position", "priority"]),
)
def test_looks_ahead_exactly_where_an_expert_can_overflow(
    n_experts: Any,
    n_zero: Any,
    k: int,
    own_k: Any,
    factor: float,
    eval_factor: float | None,
    tau: Any,
    scope: Scope,
    order: Order,
) -> None:
    """Up to 64 tokens that all ask for the same k experts: nothing crowds them more."""
    kinds = ("ffn",) * n_experts + ("zero",) * n_zero
    E, k = len(kinds), min(k, len(kinds))
    limit = Capacity(factor, order, scope, k=own_k, tau=tau, eval_factor=eval_factor)
    config = {"name": "softmax_topk", "k": k, "norm_topk_prob": False}
    router = ROUTERS.build(config, d_model=4, n_experts=E)
    drops = {True: False, False: False}
    for T in (1, 2, 3, 5, 8, 64):
        for first in range(E):
            index_TK = ((first + torch.arange(k)) % E).expand(T, k)
            probs_TE = torch.full((T, E), 1 / E)
            routing = Routing.from_topk(
                index_TK,
                torch.ones(T, k),
                logits_TE=probs_TE,
                probs_TE=probs_TE,
                context=context_of(1, T),
                kinds=kinds,
            )
            for train in drops:
                taken = limit.train(train)(routing).taken
                drops[train] |= len(taken) < len(routing.asked)
    expected = "always" if drops[False] else "in training" if drops[True] else "never"
    assert limit.lookahead(router, kinds) == expected


def test_a_router_whose_k_varies_may_ask_for_one_expert_per_token() -> None:
    router = ROUTERS.build({"name": "top_p", "k": 2}, d_model=4, n_experts=4)
    assert Capacity(2.0).lookahead(router) == "always"  # room for half of the tokens
    assert Capacity(4.0).lookahead(router) == "never"
