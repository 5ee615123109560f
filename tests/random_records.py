"""Random records of every kind of router, and the same as plain Python for brute force."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from router_lab.metrics import RoutingMetrics
from router_lab.routing import Assignments, RouterContext, Routing

D = 3  # domains
KINDS = ("fixed_k", "variable_k", "expert_choice", "dropped", "without_scores", "idle_experts")


@st.composite
def records(draw: st.DrawFn, n_experts: int | None = None) -> Routing:
    """A record: fixed k, k varying by token (0 included), expert choice, drops, a router without
    scores, experts that nobody takes."""
    E = n_experts or draw(st.integers(1, 6))
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    k = draw(st.integers(1, E))
    return random_record(draw(st.sampled_from(KINDS)), B, S, E, k, draw(st.integers(0, 10**6)))


def random_record(kind: str, B: int, S: int, E: int, k: int, seed: int) -> Routing:
    torch.manual_seed(seed)
    context = RouterContext.of_batch(torch.randint(0, 4, (B, S)))
    logits_TE = 2 * torch.randn(B * S, E)
    if kind == "without_scores":
        logits_TE = torch.zeros(B * S, E)
    probs_TE = torch.zeros_like(logits_TE) if kind == "without_scores" else logits_TE.softmax(1)
    scores: dict[str, Any] = {"logits_TE": logits_TE, "probs_TE": probs_TE, "context": context}
    if kind == "variable_k":
        mask_TE = torch.rand(B * S, E) < 0.4
        return Routing.from_mask(mask_TE, torch.rand(B * S, E), **scores)
    if kind == "expert_choice":
        mask_TE = torch.zeros(B * S, E, dtype=torch.bool)
        room = max(k * B * S // E, 1)
        mask_TE.scatter_(0, logits_TE.topk(room, dim=0).indices, True)
        return Routing.from_mask(mask_TE, probs_TE, **scores)
    masked_TE = logits_TE.clone()
    if kind == "idle_experts":
        masked_TE[:, : E - k] = -torch.inf
    if kind == "without_scores":
        masked_TE = torch.randn(B * S, E)
    index_TK = masked_TE.topk(k, dim=1).indices
    routing = Routing.from_topk(index_TK, torch.rand(B * S, k), **scores)
    if kind == "dropped":
        survivors_A = (torch.rand(B * S * k) < 0.6).nonzero().squeeze(1)
        return replace(routing, taken=routing.asked.keep(survivors_A))
    return routing


@dataclass(frozen=True)
class Token:
    """One token of a record: its experts with their weights, its distribution, its id."""

    weights: dict[int, float]
    probs: list[float]
    logits: list[float]
    id: int

    @property
    def experts(self) -> set[int]:
        return set(self.weights)


def plain(routing: Routing) -> list[Token]:
    """The record as plain Python, token by token."""
    weights: list[dict[int, float]] = [{} for _ in range(routing.n_tokens)]
    for token, expert, weight in zip(
        routing.taken.token_A.tolist(),
        routing.taken.expert_A.tolist(),
        routing.taken.weight_A.tolist(),
        strict=True,
    ):
        assert expert not in weights[token]
        weights[token][expert] = weight
    rows = zip(
        weights,
        routing.probs_TE.tolist(),
        routing.logits_TE.tolist(),
        routing.context.token_id_T.tolist(),
        strict=True,
    )
    return [Token(*row) for row in rows]


def halves(routing: Routing) -> list[Routing]:
    """The record cut in two by tokens."""
    cut = routing.n_tokens // 2
    return [part(routing, torch.arange(cut)), part(routing, torch.arange(cut, routing.n_tokens))]


def part(routing: Routing, index_T: Tensor) -> Routing:
    first = int(index_T[0]) if len(index_T) else 0

    def inside(assignments: Assignments) -> Assignments:
        inside_A = torch.isin(assignments.token_A, index_T).nonzero().squeeze(1)
        cut = assignments.keep(inside_A)
        return replace(cut, token_A=cut.token_A - first)

    return replace(
        routing,
        asked=inside(routing.asked),
        taken=inside(routing.taken),
        logits_TE=routing.logits_TE[index_T],
        probs_TE=routing.probs_TE[index_T],
        context=routing.context.select(index_T),
    )


def topk(index: list[list[int]], n_experts: int, ids: list[int] | None = None) -> Routing:
    """A record in which each token has these experts."""
    index_TK = torch.tensor(index)
    scores_TE = torch.zeros(len(index), n_experts)
    context = RouterContext.of_batch(torch.tensor([ids or [0] * len(index)]))
    return Routing.from_topk(
        index_TK,
        torch.ones(index_TK.shape),
        logits_TE=scores_TE,
        probs_TE=scores_TE,
        context=context,
    )


def domains(routing: Routing, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, D, (routing.n_tokens,), generator=generator)


def measure(*routings: Routing) -> RoutingMetrics:
    metrics = RoutingMetrics(routings[0].n_experts, vocab_size=4, n_domains=D)
    for routing in routings:
        metrics.update(routing, domains(routing))
    return metrics


def vocabulary(n_experts: int, vocab_size: int) -> RoutingMetrics:
    return RoutingMetrics(n_experts, vocab_size, names=["vocab_specialisation"])


def of_domains(n_experts: int, n_domains: int) -> RoutingMetrics:
    names = ("domain_nmi", "domain_purity", "domain_purity_chance", "share_DE")
    return RoutingMetrics(n_experts, n_domains=n_domains, names=names)
