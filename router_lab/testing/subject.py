"""What is checked: a router class with its options, and the small batches it is checked on.

T tokens, D width, E experts, B sequences, S tokens per sequence, A assignments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routing import ROUTERS, Router, RouterContext, Routing, StepTotals, noise

VOCABULARY = 32
MODES = {"training": True, "evaluation": False}


class ContractError(AssertionError):
    """A router breaks the contract; the message names it, the check, and what to do."""


class NotApplicable(Exception):
    """A check does not apply to this router; the message says why."""


def require(condition: object, problem: str, remedy: str) -> None:
    """Raises ContractError unless the condition holds.

    Args:
        problem: what was seen.
        remedy: what to do about it.
    """
    if not condition:
        raise ContractError(f"{problem} {remedy}")


@dataclass(frozen=True)
class Subject:
    """A router class and the options it is built with.

    Attributes:
        options: the router's own options.
        d_model: width D.
        n_experts: experts E.
    """

    cls: type[Router]
    options: Mapping[str, Any] = field(default_factory=dict)
    d_model: int = 16
    n_experts: int = 8

    @property
    def name(self) -> str:
        """The router's registered name, or that of its class."""
        return ROUTERS.name_of(self.cls) or self.cls.__name__

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.cls, **self.options}

    def build(self, seed: int = 0, **changed: Any) -> Router:
        """A router as it might be in mid-training: parameters that start at zero have moved.

        Args:
            changed: options, or n_experts, in place of the subject's.
        """
        n_experts = changed.pop("n_experts", self.n_experts)
        with seeded(seed):
            config = {**self.config, **changed}
            router = ROUTERS.build(config, d_model=self.d_model, n_experts=n_experts)
            move_from_zero(router)
        return router

    def model(self, seed: int = 0, **options: Any) -> Transformer:
        """A two-layer language model with this router in both layers."""
        with seeded(seed):
            sizes = {"d_model": self.d_model, "n_layers": 2, "n_heads": 2, "seq_len": 16, **options}
            model = Transformer(
                VOCABULARY,
                ffn={"name": "moe", "n_experts": self.n_experts, "router": self.config},
                options=ModelOptions(**sizes),
                d_hidden=8,
                seed=seed,
            )
            for layer_router in model.routers().values():
                move_from_zero(layer_router)
        return model

    def batch(self, B: int = 2, S: int = 16, seed: int = 0) -> tuple[Tensor, RouterContext]:
        """Random vectors [B·S, D] and their context."""
        with seeded(seed):
            x_TD = torch.randn(B * S, self.d_model)
            keys_B = torch.randint(2**32, (B,))
            context = RouterContext.of_batch(torch.randint(VOCABULARY, (B, S)), noise_B=keys_B)
            return x_TD, context


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The random numbers of a seed; the global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def move_from_zero(router: nn.Module) -> None:
    with torch.no_grad():
        for parameter in router.parameters():
            if parameter.numel() and not parameter.any():
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.dim() else 1.0)


def route(
    router: nn.Module, x_TD: Tensor, context: RouterContext, *, train: bool, seed: int = 0
) -> Routing:
    """One forward pass in the given mode, noise from the seed. Leaves the router in that mode."""
    router.train(train)
    if seed and context.noise_B is not None:
        context = replace(context, noise_B=noise.fold(context.noise_B, seed))
    with seeded(seed):
        routing = router(x_TD, context)
    require(
        isinstance(routing, Routing),
        f"forward returned {type(routing).__name__}, not a Routing.",
        "Return Routing.from_topk(…) or Routing.from_mask(…).",
    )
    assert isinstance(routing, Routing)
    return replace(routing, context=context)


def route_in_both_modes(
    router: nn.Module, x_TD: Tensor, context: RouterContext
) -> Iterator[tuple[str, Routing]]:
    """A forward pass in training, then one in evaluation, each with its phrase `In training, `."""
    for mode, train in MODES.items():
        yield f"In {mode}, ", route(router, x_TD, context, train=train)


def totals_of(routing: Routing) -> StepTotals:
    """The totals of an optimiser step that is this one batch."""
    density = len(routing.asked) / (routing.n_tokens * routing.n_experts)
    return StepTotals(routing.n_tokens, density, dict(routing.stats))


def take_steps(router: Router, subject: Subject, n: int, first: int = 0) -> None:
    """Optimiser steps on batches whose tokens are nearly alike, so that the load is uneven."""
    for step in range(first, first + n):
        x_TD, context = subject.batch(seed=step)
        x_TD = x_TD[:1] + 0.3 * x_TD
        with torch.no_grad():
            routing = route(router, x_TD, replace(context, step=step), train=True, seed=step)
        router.after_step(routing.demand_E, totals_of(routing))


def next_token_loss(logits_BSV: Tensor, tokens_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())


def dense(routing: Routing) -> dict[str, Tensor]:
    """The record by token: whatever must agree where two records say the same."""
    taken, zeros_TE = routing.taken, torch.zeros(routing.probs_TE.shape)
    pairs = (taken.token_A, taken.expert_A)
    parts = {
        "the chosen experts": zeros_TE.index_put(pairs, torch.tensor(1.0)),
        "the combine weights": zeros_TE.index_put(pairs, taken.weight_A.detach()),
        "logits_TE": routing.logits_TE.detach(),
        "probs_TE": routing.probs_TE.detach(),
    }
    if routing.state is not None:
        parts["state"] = routing.state.detach()
    return parts


def differing(
    a: Routing,
    b: Routing,
    index_a: Tensor | None = None,
    index_b: Tensor | None = None,
    losses: bool = False,
) -> str | None:
    """The first part in which two records differ over the given tokens, in words; None if none.

    Args:
        losses: whether the router's own losses must agree too.
    """
    parts_a, parts_b = dense(a), dense(b)
    if index_a is not None:
        parts_a = {name: value[index_a] for name, value in parts_a.items()}
    if index_b is not None:
        parts_b = {name: value[index_b] for name, value in parts_b.items()}
    if losses:
        parts_a |= {f"the loss {name}": term for name, term in a.losses.items()}
        parts_b |= {f"the loss {name}": term for name, term in b.losses.items()}
    if parts_a.keys() != parts_b.keys():
        return f"whether there is {' or '.join(sorted(parts_a.keys() ^ parts_b.keys()))}"
    for name, one in parts_a.items():
        atol = 1e-7 if name.startswith("the loss") else 1e-5
        if not torch.allclose(one, parts_b[name], rtol=1e-4, atol=atol, equal_nan=True):
            return f"{name} (by up to {(one - parts_b[name]).abs().max():.2g})"
    return None


def require_same(
    one: Routing,
    other: Routing,
    problem: str,
    remedy: str,
    index_one: Tensor | None = None,
    losses: bool = False,
) -> None:
    """Raises ContractError where two records differ.

    Args:
        problem: what was seen; `{}` stands for the part that differs.
    """
    difference = differing(one, other, index_one, losses=losses)
    require(difference is None, problem.format(difference), remedy)
