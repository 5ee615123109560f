"""The sums over routing records that metrics are computed from.

Every metric of a record is a function of a few sums over tokens. Sums add up, so a metric is exact
over a whole validation set, over micro-batches and over ranks, and a sum that several metrics read
is computed once. A sum of your own is a function with the decorator `record_sum`.

E experts, T tokens, A assignments, V vocabulary, D domains. Counts are int64, other sums float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from router_lab.errors import UserError
from router_lab.routing import Routing, count


def selection(routing: Routing) -> Tensor:
    """Which experts each token has, bool [T, E]."""
    chosen_TE = torch.zeros_like(routing.probs_TE, dtype=torch.bool)
    chosen_TE[routing.taken.token_A, routing.taken.expert_A] = True
    return chosen_TE


class RecordView:
    """One record, with what several sums read of it computed once.

    Args:
        routing: the record of one layer for one batch.
        sizes: E, and V and D where those sums are wanted.
        domain_T: domain of each token, long, −1 for none.
    """

    def __init__(
        self, routing: Routing, sizes: dict[str, int], domain_T: Tensor | None = None
    ) -> None:
        self.routing = routing
        self.sizes = sizes
        self.domain_T = domain_T

    @cached_property
    def load_E(self) -> Tensor:
        return self.routing.load_E

    @cached_property
    def chosen_TE(self) -> Tensor:
        return selection(self.routing)

    @cached_property
    def k_T(self) -> Tensor:
        """Assignments of each token, long."""
        return count(self.routing.taken.token_A, self.routing.n_tokens)

    @cached_property
    def margin_T(self) -> Tensor:
        """Probability of the worst of a token's experts minus that of the best other expert.

        NaN for a token with no expert or with all of them.
        """
        probs_TE, chosen_TE = self.routing.probs_TE, self.chosen_TE
        worst_T = probs_TE.masked_fill(~chosen_TE, torch.inf).amin(dim=1)
        best_other_T = probs_TE.masked_fill(chosen_TE, -torch.inf).amax(dim=1)
        margin_T = worst_T - best_other_T
        return margin_T.masked_fill(margin_T.isinf(), torch.nan)

    @cached_property
    def weight_entropy_T(self) -> Tensor:
        """Entropy of a token's combine weights over the log of their number; NaN below two."""
        token_A = self.routing.taken.token_A
        zeros_T = self.routing.probs_TE.new_zeros(self.routing.n_tokens)
        weight_A = self.routing.taken.weight_A.clamp_min(0)
        sum_T = zeros_T.scatter_add(0, token_A, weight_A).clamp_min(1e-12)
        nats_A = torch.special.entr(weight_A / sum_T[token_A])
        nats_T = zeros_T.scatter_add(0, token_A, nats_A)
        return torch.where(self.k_T > 1, nats_T / self.k_T.log(), torch.nan)

    @cached_property
    def pairs_EE(self) -> Tensor:
        chosen_TE = self.chosen_TE.float()
        return (chosen_TE.T @ chosen_TE).long()

    def scalar(self, value: int) -> Tensor:
        return torch.full((), value, device=self.routing.probs_TE.device)

    def k_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum over tokens of a function of their number of experts."""
        k, n = self.routing.taken.k, self.routing.n_tokens
        return function(self.k_T).sum() if k is None else n * function(self.scalar(k))

    def table(self, group_T: Tensor, n_groups: int) -> Tensor:
        """Assignments by group of tokens and expert, long [groups, E]; group −1 is left out."""
        group_A, expert_A = group_T[self.routing.taken.token_A], self.routing.taken.expert_A
        E = self.sizes["E"]
        inside_A = group_A >= 0
        pair_A = group_A[inside_A] * E + expert_A[inside_A]
        return count(pair_A, n_groups * E).view(n_groups, E)

    @property
    def token_id_T(self) -> Tensor:
        return self.routing.context.token_id_T

    @property
    def domains_T(self) -> Tensor:
        assert self.domain_T is not None, "metrics of domains need domain_T"
        return self.domain_T


@dataclass(frozen=True)
class Sum:
    """One sum over the tokens of a record.

    Attributes:
        of: its part from one record.
        axes: a letter for each axis of the result: "" for a scalar, "E", "EE", "VE" …
        dtype: of the state.
        about: what it counts, in a phrase.
    """

    of: Callable[[RecordView], Tensor]
    axes: str
    dtype: torch.dtype
    about: str = "summed over the tokens"

    def zero(self, sizes: dict[str, int]) -> Tensor:
        return torch.zeros([sizes[axis] for axis in self.axes], dtype=self.dtype)


def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio of one load: max over mean, minus 1; 0 for no load at all (arXiv:2408.15664)."""
    load_E = load_E.float()
    return (load_E.amax() / load_E.mean().clamp_min(1e-9) - 1).clamp_min(0)


Part = Callable[[RecordView], Tensor]
COUNTS: dict[str, tuple[str, Part]] = {
    "load_E": ("assignments carried out by each expert", lambda v: v.load_E),
    "demand_E": ("assignments asked of each expert", lambda v: v.routing.demand_E),
    "n_tokens": ("tokens", lambda v: v.scalar(v.routing.n_tokens)),
    "tokens_without_expert": ("tokens without an expert", lambda v: v.k_sum(lambda k: k == 0)),
    "squared_k": ("squared number of experts of each token", lambda v: v.k_sum(torch.square)),
    "n_batches": ("batches with an assignment", lambda v: (v.load_E.sum() > 0).long()),
    "n_margins": ("tokens with a margin", lambda v: v.margin_T.isfinite().sum()),
    "n_shared_tokens": ("tokens with two experts or more", lambda v: (v.k_T > 1).sum()),
    "pairs_EE": ("tokens that have both experts; diagonal: the one", lambda v: v.pairs_EE),
    "load_VE": ("assignments by token id", lambda v: v.table(v.token_id_T, v.sizes["V"])),
    "tokens_V": ("tokens by id", lambda v: count(v.token_id_T, v.sizes["V"])),
    "load_DE": ("assignments by domain", lambda v: v.table(v.domains_T, v.sizes["D"])),
    "tokens_D": (
        "tokens by domain",
        lambda v: count(v.domains_T[v.domains_T >= 0], v.sizes["D"]),
    ),
}
REALS: dict[str, tuple[str, Part]] = {
    "importance_E": ("combine weight of each expert", lambda v: v.routing.importance_E),
    "probs_E": ("probability of each expert", lambda v: v.routing.probs_TE.sum(dim=0)),
    "entropy_nats": ("entropies in nats", lambda v: torch.special.entr(v.routing.probs_TE).sum()),
    "batch_violation": ("MaxVio of each batch", lambda v: max_violation(v.load_E)),
    "margin": ("margins of the tokens", lambda v: v.margin_T.nansum()),
    "logit_length": ("norms of the logits", lambda v: v.routing.logits_TE.norm(dim=1).sum()),
    "weight_nats": ("entropies of the combine weights", lambda v: v.weight_entropy_T.nansum()),
}
SUMS = {
    name: Sum(of, name.rpartition("_")[2] if name[-1].isupper() else "", dtype, about)
    for dtype, table in ((torch.long, COUNTS), (torch.float32, REALS))
    for name, (about, of) in table.items()
}


def refuse_taken(kind: str, present: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Raises UserError unless both functions are of one file, which may be imported again."""
    file = inspect.getfile(present)
    if file != inspect.getfile(new):
        raise UserError(
            f"The {kind} name {new.__name__!r} is taken by {file}; choose another name."
        )


def record_sum(axes: str = "", dtype: torch.dtype = torch.long) -> Callable[[Part], Part]:
    """Adds the decorated function to the sums that a metric can name as a parameter.

    Raises UserError where another file has the name.
    """

    def add(function: Part) -> Part:
        name = function.__name__
        if name in SUMS:
            refuse_taken("sum", SUMS[name].of, function)
        about = inspect.getdoc(function) or Sum.about
        SUMS[name] = Sum(function, axes, dtype, about.partition("\n")[0])
        return function

    return add
