"""Metrics of the experts themselves: weights, outputs, gradients."""

from __future__ import annotations

from itertools import permutations
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from helpers import context_of
from torch import Tensor

from router_lab.metrics import ExpertGradients, OutputSimilarity, WeightSimilarity
from router_lab.model.experts import ExpertList, Experts, StackedExperts
from router_lab.model.ffn import Gated
from router_lab.model.ffns.mlp import MLP
from router_lab.routing import Assignments

D, F_, E = 6, 5, 4


def stacked() -> Experts:
    return StackedExperts(Gated.random(E, D, F_))


def listed() -> Experts:
    return ExpertList([MLP(D, F_, bias=True) for _ in range(E)])


def to(expert_T: list[int]) -> Assignments:
    """Each token to one expert, with weight 1."""
    T = len(expert_T)
    zeros_A = torch.zeros(T, dtype=torch.long)
    return Assignments(torch.arange(T), torch.tensor(expert_T), torch.ones(T), zeros_A, E, 1)


def parts(experts: Experts, e: int) -> list[Tensor]:
    """The parameters of one expert, gradients attached by hand."""
    if isinstance(experts, ExpertList):
        return list(experts.experts[e].parameters())
    return [p[e] for p in experts.parameters()]


@pytest.mark.parametrize("make", [stacked, listed])
def test_weight_similarity_is_the_mean_over_pairs(make: type) -> None:
    experts = make()
    vectors = [torch.cat([p.detach().flatten() for p in parts(experts, e)]) for e in range(E)]
    pairs = [float(F.cosine_similarity(a, b, dim=0)) for a, b in permutations(vectors, 2)]
    metric = WeightSimilarity()
    metric.update(experts)
    assert metric.compute() == pytest.approx(fmean(pairs), abs=1e-6)


def test_copies_of_one_expert_are_alike() -> None:
    experts = StackedExperts(Gated.random(E, D, F_))
    for p in experts.parameters():
        p.data = p.data[:1].expand_as(p).clone()
    weights, outputs = WeightSimilarity(), OutputSimilarity()
    weights.update(experts)
    outputs.update(experts, torch.randn(7, D), context_of(1, 7))
    assert weights.compute() == pytest.approx(1.0, abs=1e-6)
    assert outputs.compute() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("make", [stacked, listed])
def test_output_similarity_asks_every_expert_about_every_row(make: type) -> None:
    experts, rows_RD = make(), torch.randn(3, D)
    outputs = []
    for e in range(E):
        outputs.append(experts(rows_RD, to([e, e, e]), context_of(1, 3))[0].detach())
    pairs = [
        float(F.cosine_similarity(outputs[i][r], outputs[j][r], dim=0))
        for i, j in permutations(range(E), 2)
        for r in range(3)
    ]
    metric = OutputSimilarity()
    for part in (slice(0, 1), slice(1, 3)):
        metric.update(experts, rows_RD[part], context_of(1, 3).select(torch.arange(3)[part]))
    assert metric.compute() == pytest.approx(fmean(pairs), abs=1e-6)


@pytest.mark.parametrize("make", [stacked, listed])
def test_gradient_norm_of_each_expert(make: type) -> None:
    experts = make()
    metric = ExpertGradients(E)
    norms = []
    for chosen in ([0, 0, 2, 2, 2, 3], [0, 3, 3, 3, 3, 3]):  # nobody asks expert 1
        experts.zero_grad()
        out_RD, _ = experts(torch.randn(6, D), to(chosen), context_of(1, 6))
        out_RD.square().sum().backward()
        metric.update(experts)
        for p in experts.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if isinstance(experts, ExpertList):
            grads = [[p.grad for p in expert.parameters()] for expert in experts.experts]
        else:
            grads = [[p.grad[e] for p in experts.parameters()] for e in range(E)]
        norms.append([torch.cat([g.flatten() for g in mine]).norm() for mine in grads])
    right = torch.tensor(norms).mean(dim=0)
    assert metric.compute() == pytest.approx(right.tolist(), rel=1e-5)
    assert metric.compute()[1] == 0.0 < metric.compute()[2]
