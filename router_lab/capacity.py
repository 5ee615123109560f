"""Which assignments survive when an expert has room for only C of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from router_lab.routing import RouterContext, Routing, refused

Order = Literal["position", "probability", "priority"]


class Capacity(nn.Module):
    """A limit on the load of every expert, behind any router.

    An expert takes at most C = ceil(factor · A / E) assignments, where A is what the router asked
    for in the scope: k · T with a fixed k (GShard, arXiv:2006.16668, Algorithm 1). The rest is
    dropped: it contributes nothing, and the demand in the record still counts it.

    Args:
        factor: capacity over the load at perfect balance.
        order: who is served first. `position`: all first choices before second ones, earlier tokens
            before later ones (Switch, GShard). `probability`: the largest combine weights.
            `priority`: all first choices before second ones, tokens of large probability first
            (V-MoE's batch-prioritised routing, arXiv:2106.05974, section 4).
        scope: the tokens that share the room: the whole micro-batch, or each sequence for itself.
        renormalize: scale the weights of a token's survivors to their sum before the drop.

    Only `position` with k = 1 is causal: in all other cases a later token of the sequence can take
    the room of an earlier one.
    """

    def __init__(
        self,
        factor: float = 1.25,
        order: Order = "position",
        scope: Literal["batch", "sequence"] = "batch",
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if factor <= 0:
            raise refused(self, "factor", factor, "greater than 0")
        if order not in ("position", "probability", "priority"):
            raise refused(self, "order", order, "position, probability or priority")
        if scope not in ("batch", "sequence"):
            raise refused(self, "scope", scope, "batch or sequence")
        self.factor = factor
        self.order = order
        self.scope = scope
        self.renormalize = renormalize

    def causal(self, k: float) -> bool:
        """Whether a later token of the sequence can never take an earlier one's room."""
        return self.order == "position" and k == 1

    def forward(self, routing: Routing, context: RouterContext) -> Routing:
        E = routing.n_experts
        if self.scope == "sequence":
            pool_A = context.sequence_T[routing.token_A]
            asked_P = torch.zeros(context.n_sequences, dtype=torch.long, device=pool_A.device)
            asked_P = asked_P.scatter_add(0, pool_A, torch.ones_like(pool_A))
            room_A = torch.ceil(self.factor * asked_P.double() / E - 1e-9)[pool_A]
            bin_A, n_bins = pool_A * E + routing.expert_A, context.n_sequences * E
        else:
            room = math.ceil(self.factor * len(routing.token_A) / E - 1e-9)
            if routing.k is not None and room >= routing.n_tokens:
                return routing  # an expert can be asked for at most once by each token
            room_A = routing.weight_A.new_full((len(routing.token_A),), room, dtype=torch.double)
            bin_A, n_bins = routing.expert_A, E
        order_A = self._queue(routing)
        kept_A = order_A[place_in_bin(bin_A[order_A], n_bins) < room_A[order_A]].sort().values
        if len(kept_A) == len(order_A):
            return routing
        kept = routing.keep(kept_A)
        return replace(kept, weight_A=rescaled(routing, kept)) if self.renormalize else kept

    def _queue(self, routing: Routing) -> Tensor:
        """Assignments in the order in which they are served. Every sort is stable."""
        token_A, choice_A, weight_A = routing.token_A, routing.choice_A, routing.weight_A.detach()
        if self.order == "probability":
            by_token_A = token_A.argsort(stable=True)
            return by_token_A[weight_A[by_token_A].argsort(descending=True, stable=True)]
        if self.order == "priority":
            score_T = routing.probs_TE.detach().amax(dim=1)
            first_A = score_T[token_A].argsort(descending=True, stable=True)
        else:
            first_A = token_A.argsort(stable=True)
        return first_A[choice_A[first_A].argsort(stable=True)]


def place_in_bin(bin_A: Tensor, n_bins: int) -> Tensor:
    """For each entry, how many earlier entries of the list are in the same bin."""
    order_A = bin_A.argsort(stable=True)
    sizes = torch.zeros(n_bins, dtype=torch.long, device=bin_A.device)
    sizes = sizes.scatter_add(0, bin_A, torch.ones_like(bin_A))
    start = sizes.cumsum(0) - sizes
    place_A = torch.empty_like(bin_A)
    place_A[order_A] = torch.arange(len(bin_A), device=bin_A.device) - start[bin_A[order_A]]
    return place_A


def rescaled(before: Routing, after: Routing) -> Tensor:
    """The survivors' weights, scaled so that each token's sum is what it was before the drop."""

    def sums(routing: Routing) -> Tensor:
        weight_A = routing.weight_A
        zeros_T = weight_A.new_zeros(routing.n_tokens)
        return zeros_T.scatter_add(0, routing.token_A, weight_A)

    scale_T = sums(before) / sums(after).clamp_min(torch.finfo(torch.float32).tiny)
    return after.weight_A * scale_T[after.token_A]
