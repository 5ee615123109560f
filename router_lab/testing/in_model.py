"""Checks of a router inside a language model: padding, recomputation, accumulation."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from router_lab.routing import StepTotals
from router_lab.testing.subject import (
    MODES,
    VOCABULARY,
    ContractError,
    Subject,
    next_token_loss,
    require,
    seeded,
)

ROWS = (
    "Route exactly the rows of x_TD: T is not B·S, as padding is taken out before. "
    "context.sequence_T and context.position_T give the place of each token."
)


def check_padding(subject: Subject) -> None:
    """Padding takes no expert and changes nothing."""
    model = subject.model()
    with seeded(0):
        tokens_BS = torch.randint(VOCABULARY, (3, 16))
        other_BS = torch.randint(VOCABULARY, (3, 16))
    mask_BS = torch.arange(16) < torch.tensor([[16], [9], [4]])
    n_real = int(mask_BS.sum())
    for mode, train in MODES.items():
        model.train(train)
        outputs = []
        for ids_BS in (tokens_BS, torch.where(mask_BS, tokens_BS, other_BS)):
            try:
                with seeded(1):
                    outputs.append(model(ids_BS, mask_BS))
            except (RuntimeError, IndexError, ValueError) as error:
                problem = f"a batch with padding raises {type(error).__name__}: {error}"
                raise ContractError(f"In {mode}, {problem}. {ROWS}") from error
        for name, routing in outputs[0].routings.items():
            rows = {routing.n_tokens, len(routing.context.token_id_T), len(routing.logits_TE)}
            require(
                rows == {n_real} and bool((routing.taken.token_A < n_real).all()),
                f"In {mode}, {name} routes {sorted(rows)} tokens where {n_real} are real.",
                ROWS,
            )
        one, two = (out.logits_BSV[mask_BS] for out in outputs)
        require(
            torch.allclose(one, two, rtol=1e-4, atol=1e-5),
            f"In {mode}, the content of padded positions changes the output of real tokens.",
            "Use nothing but x_TD and the context, which hold real tokens only.",
        )


def check_load_once(subject: Subject) -> None:
    """The demand is counted once under accumulation and activation checkpointing."""
    plain = _one_step(subject, checkpoint=False)
    recomputed = _one_step(subject, checkpoint=True)
    for name, value in plain.items():
        require(
            torch.allclose(value.float(), recomputed[name].float(), rtol=1e-4, atol=1e-6),
            f"After a step of two micro-batches, {name} differs between a model that keeps its "
            f"activations and one that recomputes them.",
            "Count nothing in forward, which recomputation runs twice: use the demand_E of "
            "after_step, and Routing.stats for other sums. Draw noise by context.uniform or "
            "context.normal, which recomputation repeats.",
        )


def _one_step(subject: Subject, checkpoint: bool) -> dict[str, Tensor]:
    """Gradients and router state after one optimiser step of two micro-batches.

    The demand is summed as the task does it: each micro-batch once, from the records returned.
    """
    model = subject.model(checkpoint=checkpoint).train()
    demand: defaultdict[str, Tensor] = defaultdict(lambda: torch.tensor(0))
    stats: defaultdict[str, defaultdict[str, Tensor]]
    stats = defaultdict(lambda: defaultdict(lambda: torch.tensor(0.0)))
    n_tokens = 0
    for micro in range(2):
        with seeded(micro):
            tokens_BS = torch.randint(VOCABULARY, (2 + micro, 16))
            output = model(tokens_BS)
            loss = next_token_loss(output.logits_BSV, tokens_BS)
            for name, routing in output.routings.items():
                loss = loss + sum(routing.losses.values())
                demand[name] = demand[name] + routing.demand_E
                for key, value in routing.stats.items():
                    stats[name][key] = stats[name][key] + value
            loss.backward()
        n_tokens += tokens_BS.numel()
    values = {
        f"the gradient of {name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    densities = [float(demand_E.sum()) / (n_tokens * len(demand_E)) for demand_E in demand.values()]
    for name, router in model.routers().items():
        totals = StepTotals(n_tokens, sum(densities) / len(densities), stats[name])
        router.after_step(demand[name], totals)
        values |= {f"the state {name}.{key}": v for key, v in router.state_dict().items()}
    return values
