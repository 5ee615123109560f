"""Metrics over every token's set of experts: by hand, against brute force, and under merging."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from random_records import (
    D,
    Token,
    domains,
    halves,
    measure,
    of_domains,
    plain,
    random_record,
    records,
    topk,
    vocabulary,
)
from torchmetrics import Metric

from router_lab.metrics import Agreement, RoutingMetrics, Utilisation, scalars
from router_lab.metrics.metric import matrices
from router_lab.routing import Routing

# --- margin, logits, weights, co-activation ------------------------------------------------------


def margin(token: Token) -> float | None:
    outside = [p for e, p in enumerate(token.probs) if e not in token.experts]
    inside = [p for e, p in enumerate(token.probs) if e in token.experts]
    return min(inside) - max(outside) if inside and outside else None


def weight_entropy(token: Token) -> float | None:
    weights, total = token.weights.values(), sum(token.weights.values())
    if len(weights) < 2:
        return None
    return -sum(w / total * math.log(w / total) for w in weights if w > 0) / math.log(len(weights))


def mean(values: Any) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 0.0


@given(st.lists(records(), min_size=1, max_size=2))
def test_sums_equal_brute_force(routings: list[Routing]) -> None:
    for routing in routings:
        found = measure(routing).compute()
        numbers, tokens = scalars(found), plain(routing)
        assert numbers["router_margin"] == pytest.approx(mean(map(margin, tokens)), abs=1e-5)
        norms = [math.sqrt(sum(z * z for z in t.logits)) for t in tokens]
        assert numbers["logit_norm"] == pytest.approx(fmean(norms), rel=1e-4)
        entropies = mean(map(weight_entropy, tokens))
        assert numbers["weight_entropy"] == pytest.approx(entropies, abs=1e-4)
        matrix = matrices(found)["coactivation_EE"]
        partners, taken = 0, 0
        for i in range(routing.n_experts):
            mine = [t.experts for t in tokens if i in t.experts]
            both = [sum(j in s for s in mine) for j in range(routing.n_experts)]
            assert matrix[i].tolist() == pytest.approx([b / max(len(mine), 1) for b in both])
            partners += max([b for j, b in enumerate(both) if j != i], default=0)
            taken += len(mine)
        assert numbers["coactivation"] == pytest.approx(partners / max(taken, 1))


# --- agreement of two choices --------------------------------------------------------------------


# --- specialisation ------------------------------------------------------------------------------


# --- load over training --------------------------------------------------------------------------


def test_who_starves_and_when() -> None:
    """Expert 2 has nothing from interval 1 on, expert 1 in interval 3 alone."""
    loads = {0: [4, 4, 4], 1: [6, 6, 0], 3: [12, 0, 0]}
    metric = Utilisation(3, n_intervals=5)
    for interval, load in loads.items():
        metric.update(topk([[e] for e, n in enumerate(load) for _ in range(n)], 3), interval)
    found = metric.compute()
    assert found["load_IE"][1].tolist() == [0.5, 0.5, 0.0]
    assert found["load_IE"][2].tolist() == [0.0, 0.0, 0.0]  # nothing seen: nobody starves by it
    assert found["starved_at"] == [None, 3, 1]
    assert found["starving"] == pytest.approx(2 / 3)


# --- merging -------------------------------------------------------------------------------------


def updates(routing: Routing) -> list[tuple[Metric, tuple[Any, ...]]]:
    """Every other metric of records, fresh, with what it takes of this record."""
    other_TE = torch.arange(routing.n_experts)[None] <= routing.context.position_T[:, None]
    E = routing.n_experts
    return [
        (vocabulary(E, 4), ()),
        (of_domains(E, D), (routing.context.position_T % (D + 1) - 1,)),
        (Agreement(), (other_TE,)),
        (Utilisation(E, 3), (1,)),
        (RoutingMetrics(E), ()),
    ]


def close(found: Any, right: Any) -> None:
    if isinstance(right, dict):
        for name in right.keys() - {"max_vio_batch"}:  # halves are other batches
            close(found[name], right[name])
    elif isinstance(right, np.ndarray):
        np.testing.assert_allclose(found, right, atol=1e-6)
    else:
        assert found == pytest.approx(right, abs=1e-5)


@given(records())
def test_two_halves_and_two_ranks_give_the_whole(routing: Routing) -> None:
    for i, (whole, given_whole) in enumerate(updates(routing)):
        whole.update(routing, *given_whole)
        in_turn, ranks = updates(routing)[i][0], []
        for half in halves(routing):
            rank, given_half = updates(half)[i]
            rank.update(half, *given_half)
            in_turn.update(half, *given_half)
            ranks.append(rank)
        close(in_turn.compute(), whole.compute())
        # What a sync over two ranks does: gather every state, reduce it as the metric says.
        states = iter([getattr(ranks[1], name) for name in ranks[1]._reductions])
        ranks[0].distributed_available_fn = lambda: True
        ranks[0].dist_sync_fn = lambda state, group, states=states: [state, next(states)]
        close(ranks[0].compute(), whole.compute())


def test_reset_forgets() -> None:
    routing = random_record("dropped", 2, 10, 4, 2, seed=5)
    metrics = measure(routing)
    first = metrics.compute()
    metrics.reset()
    metrics.update(routing, domains(routing))
    np.testing.assert_equal(metrics.compute(), first)


def test_ranks_take_part_in_every_sum_even_without_new_tokens() -> None:
    """A rank that answered from a cache would leave the others waiting for it."""
    routing = random_record("fixed_k", 2, 8, 4, 2, seed=0)
    for metric, arguments in updates(routing):
        if isinstance(metric, Agreement):  # made anew each time
            continue
        metric.update(routing, *arguments)
        synced: list[int] = []
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = lambda state, group, synced=synced: synced.append(1) or [state]
        metric.compute()
        n_states = len(synced)
        metric.compute()
        assert len(synced) == 2 * n_states > 0
