"""Copies of the router that keeps the contract which break it by noise, state or side effects.

Importing this module adds them to `broken_routers.BROKEN`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from broken_routers import Good, asking, breaks
from torch import Tensor

from router_lab.routing import RouterContext, Routing, StepTotals


@breaks("deterministic", "Two passes over the same batch in evaluation differ")
class AlwaysNoisy(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return self.select(self.scores(x_TD) + 0.1 * context.normal(self.n_experts), context)


@breaks("deterministic", "Two passes over a batch of ties in evaluation differ")
class RandomTies(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return self.select(self.scores(x_TD) + 1e-6 * context.normal(self.n_experts), context)


@breaks("deterministic", "In evaluation it depends on context.step: the combine weights")
class AnnealsInEvaluation(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return self.select(self.scores(x_TD) / (1 + 0.9**context.step), context)


@breaks("noise", "In training, forward seeds or draws from torch's global generator")
class DrawsFromTheGlobalGenerator(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        noise = torch.randn(len(x_TD), self.n_experts) if self.training else 0.0
        return self.gate(x_TD) + noise


@breaks("noise", "In evaluation, forward seeds or draws from torch's global generator")
class SeedsTheGlobalGenerator(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        if not self.training:
            torch.manual_seed(0)
        return super().scores(x_TD)


@breaks("pure_forward", "In training, forward changes context.position_T in place")
class WritesIntoTheContext(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        context.position_T.add_(1)
        return super().forward(x_TD, context)


@breaks("compile", "Under torch.compile it differs in the combine weights")
class FastPath(Good):
    def select(self, logits_TE: Tensor, context: RouterContext, **extra: Any) -> Routing:
        routing = super().select(logits_TE, context, **extra)
        if torch.compiler.is_compiling():
            return asking(routing, weight_A=routing.asked.weight_A * 2)
        return routing


@breaks("compile", "the gradient of its input")
class FastPathForgetsGradient(Good):
    def select(self, logits_TE: Tensor, context: RouterContext, **extra: Any) -> Routing:
        routing = super().select(logits_TE, context, **extra)
        if torch.compiler.is_compiling():
            weight_A = routing.asked.weight_A.detach() + 0 * routing.asked.weight_A
            return asking(routing, weight_A=weight_A)
        return routing


@breaks("state", "After saving and loading it differs in the chosen experts")
class TableNotSaved(Good):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        del self.gate
        self.table_VE = torch.randn(32, n_experts)
        self.position = 0

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return self.select(self.table_VE[context.token_id_T], context)


@breaks("state", "Training changes multiplier, which is in no state dict")
class MultiplierNotSaved(Good):
    own_losses = {"sparsity": 1e-3}

    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.multiplier = 1e-3

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        sparsity = self.multiplier * routing.asked.weight_A.mean()
        return replace(routing, losses={"sparsity": sparsity})

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        self.multiplier *= 1.2


@breaks("state", "Training changes steps, which is in no state dict")
class StepCountNotSaved(Good):
    """The bias is saved, the counter that decides when it moves is not."""

    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.steps = 0

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        self.steps += 1
        if self.steps > 20:
            self.bias_E += (demand_E.float().mean() - demand_E).sign()
