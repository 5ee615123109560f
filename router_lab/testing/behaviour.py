"""Checks of a router's behaviour: gradients, determinism, state, precision, order of tokens."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import torch
from torch import Tensor, nn

from router_lab.routing import Routing
from router_lab.testing.subject import (
    MODES,
    VOCABULARY,
    NotApplicable,
    Subject,
    next_token_loss,
    require,
    require_same,
    route,
    route_in_both_modes,
    seeded,
    take_steps,
)

TRIES = 4
ROUNDING = 1e-6
"""A gradient below this share of the model's largest counts as a rounding error."""


def check_gradient(subject: Subject) -> None:
    """Gradient reaches every parameter of the router."""
    router = subject.build()
    names = [name for name, p in router.named_parameters() if p.requires_grad]
    if not names:
        raise NotApplicable("it has no parameters")
    with_losses: set[str] = set()
    task_alone: set[str] = set()
    for seed in range(TRIES):
        task_alone |= _reached(subject, seed, router_losses=False)
        with_losses |= _reached(subject, seed, router_losses=True)
    require(
        task_alone,
        "None of its parameters gets a gradient from the language model's loss.",
        "The combine weights must depend on the gate, and for k = 1 they must not be renormalised "
        "(a weight that is always 1 has no gradient).",
    )
    missing = [name for name in names if name not in with_losses]
    require(
        not missing,
        f"No gradient reaches {', '.join(missing)}, neither from the language model's loss nor "
        f"from the router's own.",
        "Look for detach, no_grad or argmax on the way to weight_A, or delete what is not used.",
    )


def _reached(subject: Subject, seed: int, router_losses: bool) -> set[str]:
    """Router parameters with a gradient that is not zero, in any layer of a small model."""
    model = subject.model(seed).train()
    with seeded(seed):
        tokens_BS = torch.randint(VOCABULARY, (4, 16))
        output = model(tokens_BS)
    loss = next_token_loss(output.logits_BSV, tokens_BS)
    if router_losses:
        for routing in output.routings.values():
            loss = loss + sum(routing.losses.values())
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    return {
        name
        for router in model.routers().values()
        for name, parameter in router.named_parameters()
        if parameter.grad is not None and float(parameter.grad.abs().max()) > ROUNDING * largest
    }


def check_deterministic(subject: Subject) -> None:
    """Evaluation gives the same routing every time, at every step, ties included."""
    router = subject.build()
    for seed in range(TRIES):
        x_TD, context = subject.batch(seed=seed)
        route(router, x_TD, context, train=True)
        for kind, batch_TD in (("the same batch", x_TD), ("a batch of ties", 0 * x_TD)):
            require_same(
                route(router, batch_TD, context, train=False, seed=1),
                route(router, batch_TD, context, train=False, seed=2),
                f"Two passes over {kind} in evaluation differ in {{}}.",
                "Draw noise, jitter and random experts only `if self.training`, and break ties by "
                "the number of the expert.",
                losses=True,
            )
        require_same(
            route(router, x_TD, replace(context, step=0), train=False),
            route(router, x_TD, replace(context, step=10**6), train=False),
            "In evaluation it depends on context.step: {} differ between step 0 and a million.",
            "Store the training state in a buffer, so that a saved model is complete.",
        )


def check_pure_forward(subject: Subject) -> None:
    """A forward pass changes neither its input nor the context nor the state."""
    router = subject.build()
    before = copy.deepcopy(router.state_dict())
    x_TD, context = subject.batch()
    x_before_TD, context_before = x_TD.clone(), copy.deepcopy(context)
    for where, _ in route_in_both_modes(router, x_TD, context):
        for name, value in vars(context_before).items():
            require(
                not isinstance(value, Tensor) or value.equal(getattr(context, name)),
                f"{where}forward changes context.{name} in place.",
                "The context is shared by all layers; clone before you write.",
            )
        require(
            x_TD.equal(x_before_TD),
            f"{where}forward changes its input in place.",
            "Multiply into a new tensor: jitter is for the router's input alone.",
        )
        changed = [n for n, value in router.state_dict().items() if not value.equal(before[n])]
        require(
            not changed,
            f"{where}forward changes its state: {', '.join(changed)}.",
            "Activation checkpointing runs forward twice per step: send sums out in Routing.stats "
            "and change buffers in after_step(demand_E, totals).",
        )


def check_noise(subject: Subject) -> None:
    """It leaves torch's global generator alone."""
    router = subject.build()
    for mode, train in MODES.items():
        x_TD, context = subject.batch()
        router.train(train)
        with seeded(3):
            router(x_TD, context)
            state = torch.get_rng_state()
        with seeded(3):
            untouched = torch.get_rng_state()
        require(
            state.equal(untouched),
            f"In {mode}, forward seeds or draws from torch's global generator.",
            "Draw noise by context.uniform(n) or context.normal(n): a function of seed, token and "
            "layer, so that dropout and data stay the same in all arms.",
        )


def check_compile(subject: Subject) -> None:
    """torch.compile changes nothing.

    The backend aot_eager traces forward and backward, and needs no C++ compiler.
    """
    router = subject.build()
    torch._dynamo.reset()
    compiled: nn.Module = torch.compile(router, backend="aot_eager")  # type: ignore[assignment]
    for seed in range(2):
        x_TD, context = subject.batch(seed=seed)
        x_TD.requires_grad_()
        plain = route(router, x_TD, context, train=False)
        traced = route(compiled, x_TD, context, train=False)
        problem = "Under torch.compile it differs in {}."
        remedy = "Values read with .item() or stored in Python are frozen at the first call; use "
        remedy += "tensors."
        require_same(plain, traced, problem, remedy)
        gradient_TD, traced_TD = _input_gradient(plain, x_TD), _input_gradient(traced, x_TD)
        require(
            torch.allclose(gradient_TD, traced_TD, rtol=1e-3, atol=1e-5),
            problem.format("the gradient of its input"),
            remedy,
        )
    torch._dynamo.reset()


def _input_gradient(routing: Routing, x_TD: Tensor) -> Tensor:
    """Of a weighted sum of the combine weights; zeros where they do not depend on the input."""
    weight_A = routing.asked.weight_A
    if not weight_A.requires_grad:
        return torch.zeros_like(x_TD)
    weighted = weight_A * torch.arange(1.0, len(weight_A) + 1)
    (gradient,) = torch.autograd.grad(weighted.sum(), x_TD, allow_unused=True)
    return torch.zeros_like(x_TD) if gradient is None else gradient


def check_state(subject: Subject) -> None:
    """Saving and loading keeps everything that matters."""
    router = subject.build(seed=0)
    in_python = _plain_attributes(router)
    take_steps(router, subject, n=20)
    changed = [n for n, value in _plain_attributes(router).items() if value != in_python.get(n)]
    require(
        not changed,
        f"Training changes {', '.join(changed)}, which is in no state dict.",
        "A resumed or loaded run would lose it: keep counters and multipliers in buffers "
        "(torch.nn.Buffer).",
    )
    file = io.BytesIO()
    torch.save(router.state_dict(), file)
    file.seek(0)
    fresh = subject.build(seed=1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x_TD, context = subject.batch(seed=7)
    for when in ("", " and one more step"):
        for mode, train in MODES.items():
            require_same(
                route(router, x_TD, context, train=train),
                route(fresh, x_TD, context, train=train),
                f"After saving and loading{when} it differs in {{}}, in {mode}.",
                "What must survive (tables, biases, multipliers, counters) goes into buffers "
                "(torch.nn.Buffer) or parameters.",
                losses=True,
            )
        for either in (router, fresh):
            take_steps(either, subject, n=1, first=20)


def _plain_attributes(router: nn.Module) -> dict[str, str]:
    """What the router and its modules keep in Python, by name, as text."""
    return {
        f"{path}.{name}".lstrip("."): repr(value)
        for path, module in router.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and not isinstance(value, nn.Module)
    }


def check_permutation(subject: Subject) -> None:
    """Permuting the tokens permutes the routing with them."""
    if not subject.cls.permutable:
        raise NotApplicable("permutable is False: the routing depends on the order of the tokens")
    router = subject.build()
    for seed in range(TRIES):
        x_TD, context = subject.batch(seed=seed)
        with seeded(seed):
            order_T = torch.randperm(len(x_TD))
        require_same(
            route(router, x_TD, context, train=False),
            route(router, x_TD[order_T], context.select(order_T), train=False),
            "Permuting the tokens does not permute {}.",
            "If the order of the tokens is meant to count (first come, first served), set "
            "permutable = False on the class.",
            index_one=order_T,
        )


def check_autocast(subject: Subject) -> None:
    """The gate's maths stays float32 under bfloat16 autocast."""
    router = subject.build()
    x_TD, context = subject.batch()
    x_TD = x_TD.bfloat16()
    for mode, train in MODES.items():
        exact = route(router, x_TD.float(), context, train=train)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = route(router, x_TD, context, train=train)
        require_same(
            exact,
            mixed,
            f"Under bfloat16 autocast, in {mode}, it differs from float32 in {{}}.",
            "Use router_lab.routing.Gate for linear maps; wrap other matrix products in "
            "`with torch.autocast(x_TD.device.type, enabled=False)` on x_TD.float().",
        )
