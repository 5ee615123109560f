"""Checks of what a record carries for training: its losses, its sums, its weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from router_lab.routing import Router, RouterContext, Routing, StepTotals, count
from router_lab.testing.subject import MODES, NotApplicable, Subject, require, route, totals_of

EPS = 1e-3
"""Relative difference that float32 sums over a batch and its double may have."""
LEAD = 0.01
"""By how much a token's last choice may be more probable where the choice ignores the scores."""


def check_losses(subject: Subject) -> None:
    """Its losses are means over tokens with a gradient, the same ones in both modes."""
    router = subject.build()
    x_TD, context = subject.batch()
    in_mode = {m: route(router, x_TD, context, train=train) for m, train in MODES.items()}
    names = {mode: sorted(routing.losses) for mode, routing in in_mode.items()}
    if not any(names.values()):
        raise NotApplicable("it has no losses of its own")
    require(
        names["training"] == names["evaluation"],
        f"Its losses are {names['training']} in training and {names['evaluation']} in evaluation.",
        "Return the same losses in both modes; evaluation does not add them to anything.",
    )
    double_TD, double = _doubled(x_TD, context)
    for name, term in in_mode["training"].losses.items():
        twice = route(router, double_TD, double, train=True).losses[name]
        require(
            torch.allclose(term, twice, rtol=EPS, atol=1e-6),
            f"The loss {name!r} is {term.item():.4g} for a batch and {twice.item():.4g} for the "
            f"same batch twice.",
            "Average over the tokens: a sum grows with the batch, and with it the coefficient.",
        )
        require(
            _reaches_parameters(term, router),
            f"The loss {name!r} has no gradient for any parameter of the router.",
            "Compute it from the logits, probabilities or weights, not from counts.",
        )


def check_sums(subject: Subject) -> None:
    """Two micro-batches make the same step as one of both."""
    x_TD, context = subject.batch()
    double_TD, double = _doubled(x_TD, context)
    one, two = subject.build(), subject.build()
    once = route(one, x_TD, context, train=True)
    if not once.stats:
        raise NotApplicable("it keeps no sums of its own")
    together = route(two, double_TD, double, train=True)
    summed = {name: 2 * value for name, value in once.stats.items()}
    density = totals_of(once).density
    one.after_step(2 * once.demand_E, StepTotals(2 * once.n_tokens, density, summed))
    two.after_step(together.demand_E, StepTotals(2 * once.n_tokens, density, together.stats))
    for name, value in one.state_dict().items():
        require(
            torch.allclose(value.float(), two.state_dict()[name].float(), rtol=EPS, atol=1e-5),
            f"A step of two equal micro-batches leaves another {name} than one batch of both.",
            "Routing.stats is added up over micro-batches and ranks: return sums over tokens, and "
            "divide by totals.n_tokens in after_step.",
        )


def check_weights(subject: Subject) -> None:
    """Every combine weight has a gradient, and rank 0 is the choice that the token prefers."""
    router = subject.build()
    if not any(p.requires_grad for p in router.parameters()):
        raise NotApplicable("it has no parameters")
    x_TD, context = subject.batch(B=4)
    routing = route(router, x_TD, context, train=True)
    for rank in range(router.n_experts):
        weight_A = routing.asked.weight_A[routing.asked.rank_A == rank]
        if 4 * len(weight_A) < routing.n_tokens:  # few tokens have so many choices
            continue
        # Weighted, as the sum of renormalised weights is constant.
        term = (weight_A * torch.linspace(1, 2, len(weight_A))).sum()
        require(
            _reaches_parameters(term, router),
            f"The combine weights of the choices of rank {rank} have no gradient.",
            "Every combine weight must depend on the scores: look for detach and no_grad.",
        )
    routing = route(router, x_TD, context, train=False)
    lead = _lead_of_the_first_choice(routing)
    require(
        lead > -LEAD,
        f"A token's last choice is more probable than its first, by {-lead:.2g} on average.",
        "rank_A is 0 for the choice that the token prefers; a capacity limit serves it first.",
    )


def _lead_of_the_first_choice(routing: Routing) -> float:
    """Mean over tokens of the probability of their first choice minus that of their last one."""
    asked = routing.asked
    prob_A = routing.probs_TE.detach()[asked.token_A, asked.expert_A]
    number_T = count(asked.token_A, routing.n_tokens)
    first_A, last_A = asked.rank_A == 0, asked.rank_A == number_T[asked.token_A] - 1
    return float(prob_A[first_A].sum() - prob_A[last_A].sum()) / routing.n_tokens


def _doubled(x_TD: Tensor, context: RouterContext) -> tuple[Tensor, RouterContext]:
    """The batch followed by itself, with the same noise."""
    n = context.n_sequences

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value])

    return twice(x_TD), replace(
        context,
        token_id_T=twice(context.token_id_T),
        sequence_T=torch.cat([context.sequence_T, context.sequence_T + n]),
        position_T=twice(context.position_T),
        n_sequences=2 * n,
        noise_B=None if context.noise_B is None else twice(context.noise_B),
    )


def _reaches_parameters(term: Tensor, router: Router) -> bool:
    parameters = [p for p in router.parameters() if p.requires_grad and p.numel()]
    if not term.requires_grad:
        return False
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)
