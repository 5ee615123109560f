"""Checks of one record: its parts, its numbers, its choices."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from router_lab.errors import UserError
from router_lab.routing import Router, RouterContext, Routing, count
from router_lab.testing.subject import (
    MODES,
    NotApplicable,
    Subject,
    require,
    route,
    route_in_both_modes,
    seeded,
)

BUILD = "Build the record with Routing.from_topk or Routing.from_mask, which ensure this."


def check_record(subject: Subject) -> None:
    """Every part of the record has its shape, dtype and range."""
    x_TD, context = subject.batch()
    router = subject.build()
    for where, routing in route_in_both_modes(router, x_TD, context):
        require(
            routing.taken is routing.asked,
            f"{where}the router takes something else than it asks for.",
            f"Only a capacity stage may drop: set self.capacity. {BUILD}",
        )
        _check_parts(routing, router, context, where)


def _check_parts(routing: Routing, router: Router, context: RouterContext, where: str) -> None:
    T, E = len(context.token_id_T), router.n_experts
    taken, A = routing.taken, len(routing.taken)
    for name, tensor, shape, dtype in (
        ("token_A", taken.token_A, (A,), torch.long),
        ("expert_A", taken.expert_A, (A,), torch.long),
        ("rank_A", taken.rank_A, (A,), torch.long),
        ("weight_A", taken.weight_A, (A,), torch.float32),
        ("logits_TE", routing.logits_TE, (T, E), torch.float32),
        ("probs_TE", routing.probs_TE, (T, E), torch.float32),
    ):
        require(
            tuple(tensor.shape) == shape and tensor.dtype == dtype,
            f"{where}{name} is {tensor.dtype} {tuple(tensor.shape)}.",
            f"It must be {dtype} {shape}, for T={T} tokens and E={E} experts. {BUILD}",
        )
    for name, end in (("token_A", T), ("expert_A", E), ("rank_A", E)):
        index_A = getattr(taken, name)
        require(
            A == 0 or 0 <= int(index_A.min()) <= int(index_A.max()) < end,
            f"{where}{name} has entries outside 0 … {end - 1}.",
            BUILD,
        )
    pair_A = taken.token_A * E + taken.expert_A
    require(
        len(pair_A.unique()) == A,
        f"{where}a token is assigned to the same expert twice.",
        "Choose different experts for a token, or add their weights up.",
    )
    rank_A = taken.token_A * E + taken.rank_A
    require(
        len(rank_A.unique()) == A,
        f"{where}two assignments of a token have the same place in its order of preference.",
        f"rank_A counts the choices of a token, 0 for its first. {BUILD}",
    )
    if taken.k is not None:
        require(
            taken.token_A.equal(torch.arange(T).repeat_interleave(taken.k)),
            f"{where}k={taken.k} is set, but token_A is not 0 … T−1, each exactly k times.",
            "Set Assignments.k only through Routing.from_topk.",
        )
    sum_T = routing.probs_TE.detach().sum(dim=1)
    wrong_T = ((sum_T - 1).abs() > 1e-4) & (sum_T.abs() > 1e-4)
    require(
        bool((routing.probs_TE >= 0).all()) and not bool(wrong_T.any()),
        f"{where}a row of probs_TE is no distribution: it has a negative entry or a sum like "
        f"{sum_T[wrong_T][:1].tolist()}.",
        "Divide the scores by the sum of their row; a row may be all zeros.",
    )
    _check_optional(routing, router, T, where)


def _check_optional(routing: Routing, router: Router, T: int, where: str) -> None:
    for name, value in routing.losses.items():
        require(
            name in router.own_losses,
            f"{where}the record has the loss {name!r}, which own_losses does not name.",
            "Set own_losses = {name: coefficient} on the class, or on the instance if it depends "
            "on the options: the result of a run lists it.",
        )
        require(
            value.dim() == 0 and value.is_floating_point() and bool(value.isfinite()),
            f"{where}the loss {name!r} is not a finite number: {value}.",
            "A loss in Routing.losses is a scalar tensor, already weighted.",
        )
    for name, value in routing.stats.items():
        require(
            not value.requires_grad,
            f"{where}the statistic {name!r} carries a gradient.",
            "Detach what goes into Routing.stats: it is summed over micro-batches and ranks.",
        )
    require(
        routing.state is None or routing.state.shape[0] == T,
        f"{where}state does not have one row for each of the {T} tokens.",
        "Its first dimension is T.",
    )


def check_finite(subject: Subject) -> None:
    """Weights, scores, losses and gradients are finite, for large, zero and equal inputs too."""
    x_TD, context = subject.batch()
    inputs = {"ordinary": x_TD, "a hundredfold": 100 * x_TD, "all-zero": torch.zeros_like(x_TD)}
    inputs["equal"] = x_TD[:1].expand_as(x_TD)
    for kind, input_TD in inputs.items():
        router = subject.build()
        x = input_TD.clone().requires_grad_()
        for where, routing in route_in_both_modes(router, x, context):
            values = {
                "weight_A": routing.asked.weight_A,
                "logits_TE": routing.logits_TE,
                "probs_TE": routing.probs_TE,
                **{f"the loss {name!r}": value for name, value in routing.losses.items()},
            }
            for name, value in values.items():
                require(
                    bool(value.isfinite().all()),
                    f"{where}{name} has NaN or infinite values for {kind} inputs.",
                    "Look for exp without subtracting the maximum, a division by a sum or norm "
                    "that can be 0, and log of 0.",
                )
            _require_finite_gradients(router, x, routing, f"{where}for {kind} inputs, ")


def _require_finite_gradients(router: Router, x_TD: Tensor, routing: Routing, where: str) -> None:
    with seeded(1):
        total = (routing.taken.weight_A * torch.randn_like(routing.taken.weight_A)).sum()
    total = total + sum(routing.losses.values())
    if not total.requires_grad:
        return
    total.backward()
    for name, value in [("x_TD", x_TD), *router.named_parameters()]:
        require(
            value.grad is None or bool(value.grad.isfinite().all()),
            f"{where}the gradient of {name} is not finite.",
            "Use clamp_min or eps before sqrt, log and division; torch.where keeps the NaN of the "
            "branch that it does not take.",
        )


def check_fixed_k(subject: Subject) -> None:
    """Each token gets exactly k experts."""
    if not subject.cls.fixed_k:
        raise NotApplicable("fixed_k is False: the number of experts per token varies")
    router = subject.build()
    x_TD, context = subject.batch()
    for where, routing in route_in_both_modes(router, x_TD, context):
        number_T = count(routing.asked.token_A, routing.n_tokens)
        require(
            bool((number_T == router.mean_k).all()),
            f"{where}tokens get {int(number_T.min())} to {int(number_T.max())} experts, while "
            f"fixed_k=True and k={router.mean_k} promise exactly k.",
            "Set fixed_k = False on the class, and pass the average to super().__init__ as k.",
        )


def check_small_batches(subject: Subject) -> None:
    """A single token, and a single expert, work as any other batch."""
    router = subject.build()
    cases = [("one token", router, 1, 1), ("two sequences of one token", router, 2, 1)]
    try:
        has_k = "k" in inspect.signature(subject.cls).parameters
        single = subject.build(n_experts=1, **({"k": 1} if has_k else {}))
        cases += [("a single expert", single, 2, 16), ("one token, one expert", single, 1, 1)]
    except UserError:
        pass  # refused in words, which is as good
    for kind, case_router, B, S in cases:
        x_TD, context = subject.batch(B, S)
        for mode, train in MODES.items():
            where = f"With {kind}, in {mode}, "
            x = x_TD.clone().requires_grad_()
            routing = route(case_router, x, context, train=train)
            if case_router.capacity is not None:
                routing = case_router.capacity(routing)
            _check_parts(routing, case_router, context, where)
            require(
                bool(routing.taken.weight_A.isfinite().all()),
                f"{where}the weights are not finite.",
                "A standard deviation over a single value is NaN; use correction=0 and clamp_min.",
            )
            _require_finite_gradients(case_router, x, routing, where)
