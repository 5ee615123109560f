"""A router that keeps the contract, and copies of it that break one promise each.

Every entry of BROKEN is (check that must fail, class, words that its message must have).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.routing import Gate, Router, RouterContext, Routing, StepTotals


class Good(Router):
    """Softmax top-2 with noise in training, a loss and a selection bias: passes every check."""

    own_losses = {"size": 1e-4}

    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.gate = Gate(d_model, n_experts)
        self.register_buffer("bias_E", torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.scores(x_TD)
        if self.training:
            logits_TE = logits_TE + 0.1 * context.normal(self.n_experts)
        return self.select(logits_TE, context)

    def scores(self, x_TD: Tensor) -> Tensor:
        return self.gate(x_TD)

    def select(self, logits_TE: Tensor, context: RouterContext, **extra: Any) -> Routing:
        probs_TE = logits_TE.softmax(dim=-1)
        index_TK = (probs_TE + self.bias_E).topk(self.k, dim=-1).indices
        weight_TK = probs_TE.gather(1, index_TK)
        extra.setdefault("losses", {"size": 1e-4 * logits_TE.square().mean()})
        extra.setdefault("stats", {"confidence": probs_TE.detach().amax(dim=1).sum()})
        return Routing.from_topk(
            index_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, **extra
        )

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        self.bias_E += 0.01 * (demand_E.float().mean() - demand_E).sign()


def asking(routing: Routing, **changes: Any) -> Routing:
    """The record of a router that asks for something else."""
    asked = replace(routing.asked, **changes)
    return replace(routing, asked=asked, taken=asked)


BROKEN: list[tuple[str, type[Router], str]] = []


def breaks(check: str, words: str) -> Any:
    def add(cls: type[Router]) -> type[Router]:
        BROKEN.append((check, cls, words))
        return cls

    return add


@breaks("record", "not a Routing")
class ReturnsTuple(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Any:
        return super().forward(x_TD, context), 0


@breaks("record", "logits_TE is torch.bfloat16")
class HalfPrecisionLogits(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        return replace(routing, logits_TE=routing.logits_TE.bfloat16())


@breaks("record", "no distribution")
class SigmoidSums(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        return replace(routing, probs_TE=routing.logits_TE.sigmoid())


@breaks("record", "same expert twice")
class SameExpertTwice(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        expert_A = routing.taken.expert_A.view(-1, 2)[:, :1].expand(-1, 2).reshape(-1)
        return asking(routing, expert_A=expert_A)


@breaks("record", "exactly k times")
class WrongK(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return asking(super().forward(x_TD, context), k=1)


@breaks("finite", "hundredfold")
class NaiveSoftmax(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        exp_TE = super().scores(x_TD).exp()
        return (exp_TE / exp_TE.sum(dim=1, keepdim=True)).log()


@breaks("finite", "gradient of x_TD is not finite")
class NormWithoutEps(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        length_T = x_TD.float().square().sum(dim=1).sqrt()
        return super().scores(x_TD / (length_T[:, None] + 1e-6))


@breaks("fixed_k", "1 to 8 experts, while fixed_k=True and k=2")
class VariableK(Good):
    def select(self, logits_TE: Tensor, context: RouterContext, **extra: Any) -> Routing:
        probs_TE = logits_TE.softmax(dim=-1)
        mask_TE = torch.rand_like(probs_TE) < 0.5
        mask_TE[0], mask_TE[1:, 0] = True, True
        mask_TE[1] = F.one_hot(torch.tensor(0), self.n_experts).bool()
        return Routing.from_mask(mask_TE, probs_TE, logits_TE=logits_TE, probs_TE=probs_TE)


@breaks("small_batches", "With one token")
class SampleDeviation(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().scores(x_TD)
        return logits_TE / logits_TE.std(dim=0, keepdim=True).clamp_min(0.1)


@breaks("small_batches", "With a single expert")
class SampleDeviationOfExperts(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().scores(x_TD)
        return logits_TE / logits_TE.std(dim=1, keepdim=True).clamp_min(0.1)


@breaks("gradient", "No gradient reaches forgotten")
class UnusedParameter(Good):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.forgotten = nn.Parameter(torch.ones(3))


@breaks("gradient", "renormalised")
class RenormalisedTop1(Good):
    own_losses = {"own": 1.0}

    def __init__(self, d_model: int, n_experts: int, k: int = 1) -> None:
        super().__init__(d_model, n_experts, k)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        losses = {"own": routing.logits_TE.square().mean()}  # reaches the gate, but helps nobody
        weight_A = routing.asked.weight_A / routing.asked.weight_A
        return replace(asking(routing, weight_A=weight_A), losses=losses)


def with_loss(name: str, check: str, words: str, *, after: Any) -> None:
    """A copy of Good with one loss, made from its record by `after(router, routing)`."""

    def forward(self: Good, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = Good.forward(self, x_TD, context)
        return replace(routing, losses=after(self, routing))

    breaks(check, words)(type(name, (Good,), {"own_losses": {"own": 1.0}, "forward": forward}))


with_loss(
    "SummedLoss",
    "losses",
    "for the same batch twice",
    after=lambda router, routing: {"own": routing.logits_TE.square().sum()},
)
with_loss(
    "LossWithoutGradient",
    "losses",
    "'own' has no gradient for any parameter",
    after=lambda router, routing: {"own": routing.demand_E.float().std() / routing.n_tokens},
)
with_loss(
    "LossInEvaluationAlone",
    "losses",
    "[] in training and ['own'] in evaluation",
    after=lambda router, routing: (
        {} if router.training else {"own": routing.logits_TE.square().mean()}
    ),
)


@breaks("sums", "leaves another bias_E than one batch of both")
class MeanAsStatistic(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        return replace(routing, stats={"mean_E": routing.probs_TE.detach().mean(dim=0)})

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        self.bias_E -= totals.stats["mean_E"]


@breaks("weights", "of the choices of rank 1 have no gradient")
class SecondWeightDetached(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        weight_A = routing.asked.weight_A
        weight_A = torch.where(routing.asked.rank_A == 0, weight_A, weight_A.detach())
        return asking(routing, weight_A=weight_A)


@breaks("weights", "last choice is more probable than its first")
class ReversedPreference(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        return asking(routing, rank_A=1 - routing.asked.rank_A)


@breaks("record", "takes something else than it asks for")
class InventsDemand(Good):
    """Asks for every token's experts once more than it takes."""

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        index_A = torch.arange(len(routing.asked)).repeat(2)
        return replace(routing, asked=routing.asked.keep(index_A))


@breaks("pure_forward", "changes its input in place")
class JitterInPlace(Good):
    def scores(self, x_TD: Tensor) -> Tensor:
        if self.training:
            x_TD *= torch.empty_like(x_TD).uniform_(0.99, 1.01)
        return super().scores(x_TD)


class CountsInForward(Good):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.register_buffer("seen_E", torch.zeros(n_experts, dtype=torch.long))

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        if self.training:
            self.seen_E += routing.demand_E
        return routing


breaks("pure_forward", "forward changes its state: seen_E")(CountsInForward)
breaks("load_once", "seen_E differs")(CountsInForward)


@breaks("record", "the loss 'sparsity', which own_losses does not name")
class UndeclaredLoss(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        return replace(routing, losses={"sparsity": 1e-3 * routing.asked.weight_A.mean()})


@breaks("padding", "a batch with padding raises RuntimeError")
class AssumesFullSequences(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        x_BSD = x_TD.view(context.n_sequences, -1, self.d_model)
        return super().forward(x_BSD.flatten(0, 1), context)


@breaks("padding", "routes [29, 48] tokens where 29 are real")
class RoutesPaddingToo(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        padded = context.n_sequences * (int(context.position_T.max()) + 1) - len(x_TD)
        routing = super().forward(x_TD, context)
        logits_TE = F.pad(routing.logits_TE, (0, 0, 0, padded))
        return replace(routing, logits_TE=logits_TE)


@breaks("autocast", "Under bfloat16 autocast, in training, it differs")
class PlainLinear(Good):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.gate = nn.Linear(d_model, n_experts, bias=False)  # type: ignore[assignment]

    def scores(self, x_TD: Tensor) -> Tensor:
        return super().scores(x_TD).float()


@breaks("load_once", "the gradient of")
class OwnGenerator(Good):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.generator = torch.Generator().manual_seed(0)

    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = self.gate(x_TD)
        if self.training:
            logits_TE = logits_TE + torch.randn(logits_TE.shape, generator=self.generator)
        return logits_TE
