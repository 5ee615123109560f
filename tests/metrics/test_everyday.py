"""The everyday set: by hand, against brute force, and under merging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers import context_of
from hypothesis import given, strategies as st
from random_records import KINDS, halves, plain, random_record, records

from router_lab.metrics import METRICS, RoutingMetrics, mean_over_layers, scalars
from router_lab.routing import Assignments, Routing

FAMILIES = [
    *("load", "demand", "importance", "max_vio", "max_vio_batch", "cv_load", "cv_importance"),
    *("effective_experts", "dead_experts", "dropped", "dropped_tokens"),
    *("balance_entropy", "confidence_entropy", "k_used", "k_std"),
]


def measure(*routings: Routing) -> dict[str, Any]:
    metrics = RoutingMetrics(routings[0].n_experts, names=FAMILIES)
    for routing in routings:
        metrics.update(routing)
    return metrics.compute()


def nats(values: Sequence[float]) -> float:
    total = sum(values)
    return -sum(v / total * math.log(v / total) for v in values if v > 0)


def brute_force(routings: list[Routing]) -> dict[str, Any]:
    """Every figure from its definition, token by token."""
    E = routings[0].n_experts
    batches = [plain(routing) for routing in routings]
    tokens = [token for batch in batches for token in batch]
    load = [sum(e in t.experts for t in tokens) for e in range(E)]
    demand = [sum(int(r.demand_E[e]) for r in routings) for e in range(E)]
    importance = [sum(t.weights.get(e, 0.0) for t in tokens) for e in range(E)]
    loads = [[sum(e in t.experts for t in batch) for e in range(E)] for batch in batches]
    scored = [t for t in tokens if sum(t.probs) > 0]
    mean_p = [sum(t.probs[e] for t in scored) for e in range(E)]
    ks = [len(t.experts) for t in tokens]
    busy = [counts for counts in loads if sum(counts)]
    some = sum(load) > 0
    scale = math.log(E) if E > 1 else 1.0

    def share(values: Sequence[float]) -> list[float]:
        return [v / sum(values) if sum(values) else 0.0 for v in values]

    return {
        "load": share(load),
        "demand": share(demand),
        "importance": share(importance),
        "max_vio": max(load) / fmean(load) - 1 if some else 0.0,
        "max_vio_batch": fmean(max(c) / fmean(c) - 1 for c in busy) if busy else 0.0,
        "cv_load": pstdev(load) / fmean(load) if some else 0.0,
        "cv_importance": pstdev(importance) / fmean(importance) if sum(importance) else 0.0,
        "effective_experts": math.exp(nats(load)) / E if some else 0.0,
        "dead_experts": load.count(0) / E if some else 0.0,
        "dropped": 1 - sum(load) / sum(demand) if sum(demand) else 0.0,
        "dropped_tokens": ks.count(0) / len(ks),
        "balance_entropy": (nats(mean_p) / scale if E > 1 else 1.0) if scored else 0.0,
        "confidence_entropy": fmean(nats(t.probs) / scale for t in scored) if scored else 0.0,
        "k_used": fmean(ks),
        "k_std": pstdev(ks),
        "tokens": len(tokens),
    }


def same(found: dict[str, Any], right: dict[str, Any]) -> None:
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


@given(st.integers(1, 6).flatmap(lambda E: st.lists(records(E), min_size=1, max_size=3)))
def test_equals_brute_force(routings: list[Routing]) -> None:
    same(measure(*routings), brute_force(routings))


def test_by_hand() -> None:
    """Four tokens, three experts; token 3 lost its one assignment, to expert 0."""
    probs_TE = torch.tensor([[0.5, 0.5, 0], [1.0, 0, 0], [0.5, 0.25, 0.25], [1.0, 0, 0]])
    asked = Assignments(
        token_A=torch.tensor([0, 0, 1, 2, 3]),
        expert_A=torch.tensor([0, 1, 0, 0, 0]),
        weight_A=torch.tensor([0.5, 0.5, 1.0, 0.5, 1.0]),
        rank_A=torch.tensor([0, 1, 0, 0, 0]),
        n_experts=3,
    )
    routing = Routing(
        asked=asked,
        taken=asked.keep(torch.arange(4)),
        logits_TE=probs_TE,
        probs_TE=probs_TE,
        context=context_of(1, 4),
    )
    found = measure(routing)
    ln2, ln3, ln4 = math.log(2), math.log(3), math.log(4)
    assert found["load"] == [0.75, 0.25, 0.0]
    assert found["demand"] == pytest.approx([0.8, 0.2, 0.0])
    assert found["importance"] == pytest.approx([0.8, 0.2, 0.0])
    assert found["max_vio"] == pytest.approx(3 / (4 / 3) - 1)  # 1.25
    assert found["cv_load"] == pytest.approx(math.sqrt(14) / 4)  # loads 3, 1, 0
    assert found["effective_experts"] == pytest.approx(4 / 3**0.75 / 3)
    assert found["dead_experts"] == pytest.approx(1 / 3)
    assert found["dropped"] == pytest.approx(0.2)
    assert found["dropped_tokens"] == 0.25
    mean_entropy = -(0.75 * math.log(0.75) + 0.1875 * math.log(0.1875) + 0.0625 * math.log(0.0625))
    assert found["balance_entropy"] == pytest.approx(mean_entropy / ln3)
    assert found["confidence_entropy"] == pytest.approx((ln2 + ln2 / 2 + ln4 / 2) / 4 / ln3)
    assert found["k_used"] == 1.0
    assert found["k_std"] == pytest.approx(math.sqrt(0.5))


def test_max_vio_tells_the_whole_set_from_its_batches() -> None:
    """Two batches, each collapsed to another expert: 1.0 in each, 0 over both."""
    context = context_of(1, 4)
    scores = {"logits_TE": torch.zeros(4, 2), "probs_TE": torch.full((4, 2), 0.5)}
    batches = [
        Routing.from_topk(torch.full((4, 1), e), torch.ones(4, 1), context=context, **scores)
        for e in (0, 1)
    ]
    found = measure(*batches)
    assert (found["max_vio"], found["max_vio_batch"]) == (0.0, 1.0)
    assert (found["dead_experts"], found["effective_experts"]) == (0.0, pytest.approx(1.0))


@given(records())
def test_balance_entropy_is_never_below_confidence_entropy(routing: Routing) -> None:
    found = measure(routing)
    assert found["confidence_entropy"] <= found["balance_entropy"] + 1e-5


@given(records())
def test_each_metric_alone_gives_the_same(routing: Routing) -> None:
    together = RoutingMetrics(routing.n_experts, vocab_size=4)
    together.update(routing)
    values = together.compute()
    for metric in together.metrics:
        alone = RoutingMetrics(routing.n_experts, vocab_size=4, names=[metric.name])
        alone.update(routing)
        np.testing.assert_equal(alone.compute()[metric.name], values[metric.name])
    assert {metric.name for metric in together.metrics} == {
        name for name, metric in METRICS.items() if "D" not in metric.sizes
    }


@given(records())
def test_two_halves_give_the_whole(routing: Routing) -> None:
    whole, cut = measure(routing), measure(*halves(routing))
    del whole["max_vio_batch"], cut["max_vio_batch"]  # its batches are others
    same(cut, whole)


def test_nothing_seen_is_zero_and_left_out_of_the_mean() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        empty = RoutingMetrics(4, names=FAMILIES).compute()
    assert empty["max_vio"] == 0.0 and empty["load"] == [0.0] * 4
    seen = measure(random_record("fixed_k", 2, 8, 4, 2, 0))
    means = mean_over_layers({"layer0": seen, "layer1.expert0": empty})
    assert means["cv_importance"] == seen["cv_importance"] > 0
    assert "load" not in means and "tokens" not in means


def test_mean_over_layers_takes_each_figure_where_it_is() -> None:
    layers = {"layer0": {"max_vio": 1.0, "load_zero": 0.2}, "layer1": {"max_vio": 3.0}}
    assert mean_over_layers(layers) == {"max_vio": 2.0, "load_zero": 0.2}
    assert mean_over_layers({}) == {}


def test_experts_without_computation_are_seen_by_kind() -> None:
    routing = random_record("fixed_k", 3, 20, 5, 2, seed=1)
    metrics = RoutingMetrics(5)
    metrics.update(replace(routing, kinds=("ffn", "ffn", "ffn", "zero", "copy")))
    load = metrics.compute()["load"]
    numbers = scalars(metrics.compute())
    assert numbers["load_ffn"] == pytest.approx(sum(load[:3]))
    assert (numbers["load_zero"], numbers["load_copy"]) == (load[3], load[4])
    assert "load" not in numbers and "tokens" not in numbers


def test_a_gradient_is_left_alone() -> None:
    logits_TE = torch.randn(6, 3, requires_grad=True)
    probs_TE = logits_TE.softmax(1)
    weight_TK, index_TK = probs_TE.topk(2)
    context = context_of(2, 3)
    routing = Routing.from_topk(
        index_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, context=context
    )
    metrics = RoutingMetrics(3)
    metrics.update(routing)
    assert not any(getattr(metrics, name).requires_grad for name in metrics.sums)


def _rank(rank: int, folder: str) -> None:
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    metrics = RoutingMetrics(4, names=FAMILIES)
    for seed in range(rank, 6, 2):  # three batches each, of different kinds
        metrics.update(random_record(KINDS[seed], 2, 8, 4, 2, seed))
    torch.save(metrics.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_what_one_gives(tmp_path: Any) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = measure(*(random_record(KINDS[seed], 2, 8, 4, 2, seed) for seed in range(6)))
    for rank in range(2):
        same(torch.load(tmp_path / f"{rank}.pt"), one)
