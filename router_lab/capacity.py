"""Capacity limits: which assignments survive when an expert has room for only C of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from router_lab.check import Rule
from router_lab.registry import Registry, register
from router_lab.routing import (
    Lookahead,
    Router,
    Routing,
    Stage,
    count,
    fair_shares,
)

Order = Literal["position", "probability", "priority"]
Scope = Literal["batch", "sequence"]
Factor = Annotated[float, Rule("above 0", lambda v: v > 0)]
"""Room, as a multiple; inf for no limit."""


class Capacity(Stage):
    """A limit on the load of every expert, behind any router.

    An expert carries out at most C = ceil(factor · A / E) assignments, where A is the demand for
    all experts in the scope, or k · T (GShard, arXiv:2006.16668, algorithm 1). The rest is dropped:
    it contributes nothing, but still counts as demand.

    Args:
        factor: room of an expert over its load at perfect balance.
        order: who is served first. `position`: all first choices before second ones, earlier tokens
            before later ones (Switch, GShard). `probability`: the largest combine weights.
            `priority`: all first choices before second ones, tokens of large probability first
            (V-MoE's batch-prioritised routing, arXiv:2106.05974, section 4).
        scope: the tokens that share the room: those of the micro-batch, or of each sequence.
        renormalize: scale the weights that a token has left to their sum before the drop.
        k: experts per token that there is room for; null: as many as the router asks for.
        tau: room of a feed-forward expert over that of a special one, in a layer with both; the
            room of all experts together stays the same (MoE++, arXiv:2410.07348, eq. 8).
        eval_factor: replaces `factor` in evaluation; null: the same as in training; inf: no limit.
            mesh-TensorFlow's MoE layers train with 1.25 and evaluate with 2.0
            (`capacity_factor_eval`).

    FLOPs are counted with the factor of training. With `scope=batch`, what is dropped depends on
    the size of the batch, in evaluation on `trainer.val_batch`.

    The room grows with the number of tokens that share it. So wherever an expert can overflow,
    later tokens decide whether an earlier one is dropped (in scope `batch`, other sequences do so
    too), whatever the order: see `lookahead`.
    """

    def __init__(
        self,
        factor: Factor = 1.25,
        order: Order = "position",
        scope: Scope = "batch",
        renormalize: bool = False,
        k: Factor | None = None,
        tau: Factor = 1.0,
        eval_factor: Factor | None = None,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.eval_factor = factor if eval_factor is None else eval_factor
        self.order = order
        self.scope = scope
        self.renormalize = renormalize
        self.k = k
        self.tau = tau

    def lookahead(self, router: Router, kinds: Sequence[str] = ()) -> Lookahead:
        """`always` if an expert can overflow in evaluation, `in training` if only there, else
        `never`.

        A token asks for an expert at most once, so expert i cannot overflow if it has room for
        every token: factor · k · b_i ≥ 1, where b_i is its share of the assignments at balance
        (1 / E) and k is the limit's own k, or that of a router whose tokens all have k experts,
        or else 1.
        """
        k = self.k or (router.mean_k if router.fixed_k else 1)
        room = k * min(fair_shares(kinds or ("ffn",) * router.n_experts, self.tau))
        if self.eval_factor * room < 1 - 1e-9:
            return "always"
        return "in training" if self.factor * room < 1 - 1e-9 else "never"

    def forward(self, routing: Routing) -> Routing:
        """The record with `taken` set to what there is room for of `asked`."""
        factor = self.factor if self.training else self.eval_factor
        if math.isinf(factor):
            return routing
        asked, context = routing.asked, routing.context
        T, E = routing.n_tokens, routing.n_experts
        fair = [factor * share for share in routing.fair_shares(self.tau)]
        # A little less before rounding up, for products like 1.1 · 10 that should be whole.
        if self.scope == "sequence":
            pool_A = context.sequence_T[asked.token_A]
            size_P = count(pool_A, context.n_sequences).double()
            if self.k is not None:
                size_P = self.k * count(context.sequence_T, context.n_sequences).double()
            fair_E = torch.tensor(fair, dtype=torch.double, device=size_P.device)
            room_E = (torch.outer(size_P, fair_E) - 1e-9).ceil().long().flatten()
            bin_A = pool_A * E + asked.expert_A
        else:
            size = len(asked) if self.k is None else self.k * routing.n_tokens
            rooms = [math.ceil(size * share - 1e-9) for share in fair]
            if asked.k is not None and min(rooms) >= routing.n_tokens:
                return routing  # a token asks for an expert at most once
            room_E = torch.tensor(rooms, device=asked.token_A.device)
            bin_A = asked.expert_A
        order_A = self._queue(routing, bin_A)
        bin_A = bin_A[order_A]
        size_E = count(bin_A, len(room_E))
        place_A = torch.arange(len(asked), device=bin_A.device) - (size_E.cumsum(0) - size_E)[bin_A]
        fits_A = torch.zeros_like(bin_A, dtype=torch.bool)
        fits_A[order_A] = place_A < room_E[bin_A]
        index_A = fits_A.nonzero().squeeze(1)
        if len(index_A) == len(asked):
            return routing
        taken = asked.keep(index_A)
        if self.renormalize:  # to the sum of the token's weights before the drop
            left_T = taken.weight_sum_T(T).clamp_min(torch.finfo(torch.float32).tiny)
            scale_T = asked.weight_sum_T(T) / left_T
            taken = replace(taken, weight_A=taken.weight_A * scale_T[taken.token_A])
        return replace(routing, taken=taken)

    def _queue(self, routing: Routing, bin_A: Tensor) -> Tensor:
        """Assignments sorted by bin, in each in the order in which they are served.

        Every sort is stable: what is equal is served by place in the batch.
        """
        asked, token_A = routing.asked, routing.asked.token_A
        first_A = torch.arange(len(token_A), device=token_A.device)
        if asked.k is None:
            first_A = token_A.argsort(stable=True)
        if self.order == "probability":
            weight_A = asked.weight_A.detach()
            first_A = first_A[weight_A[first_A].argsort(descending=True, stable=True)]
            return first_A[bin_A[first_A].argsort(stable=True)]
        if self.order == "priority":
            score_T = routing.probs_TE.detach().amax(dim=1)
            first_A = first_A[score_T[token_A[first_A]].argsort(descending=True, stable=True)]
        turn_A = bin_A * routing.n_experts + asked.rank_A  # a token has at most E choices
        return first_A[turn_A[first_A].argsort(stable=True)]


CAPACITIES: Registry[Capacity] = Registry("capacity", Capacity, "router_lab.capacity", "capacities")
register("limit")(Capacity)


def build_capacity(config: Mapping[str, Any]) -> Capacity:
    """The stage that a config node describes. Raises UserError for a wrong option or value."""
    return CAPACITIES.build({"name": "limit", **config})
