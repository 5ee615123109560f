"""Copies of the router that keeps the contract which break it by looking where they must not.

Importing this module adds them to `broken_routers.BROKEN`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from broken_routers import Good, asking, breaks
from torch import Tensor

from router_lab.capacity import Capacity
from router_lab.routing import RouterContext, Routing, StepTotals


@breaks("permutation", "Permuting the tokens does not permute")
class FirstCome(Good):
    """Each expert takes its first four tokens at full weight, later ones at half."""

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        routing = super().forward(x_TD, context)
        chosen_AE = F.one_hot(routing.taken.expert_A, self.n_experts)
        place_A = (chosen_AE.cumsum(0) * chosen_AE).sum(1)
        share_A = torch.where(place_A > 4, 0.5, 1.0)
        return asking(routing, weight_A=routing.asked.weight_A * share_A)


class ExpertsChoose(Good):
    """Each expert takes the tokens it likes best, in training only: evaluation hides it."""

    fixed_k = False

    def select(self, logits_TE: Tensor, context: RouterContext, **extra: Any) -> Routing:
        if not self.training:
            return super().select(logits_TE, context)
        probs_TE = logits_TE.softmax(dim=-1)
        room = max(1, len(probs_TE) * self.k // self.n_experts)
        index_CE = probs_TE.topk(room, dim=0).indices
        mask_TE = torch.zeros_like(probs_TE, dtype=torch.bool).scatter(0, index_CE, True)
        return Routing.from_mask(mask_TE, probs_TE, logits_TE=logits_TE, probs_TE=probs_TE)


breaks("causality", "declares lookahead='never', but in training, changing the tokens after")(
    ExpertsChoose
)


@breaks("causality", "declares lookahead='always', but in 12 tries in evaluation")
class WarnsForNothing(Good):
    lookahead = "always"


@breaks("causality", "declares lookahead='in training', but in 12 tries in training")
class WarnsOfTrainingForNothing(Good):
    lookahead = "in training"


@breaks("causality", "declares lookahead='in training', but in evaluation, changing the tokens")
@breaks("prefix", "declares lookahead='in training', but in evaluation, the first")
@breaks("batch_mates", "declares lookahead='in training', but in evaluation, a sequence")
class CentredInEvaluationToo(Good):
    """Takes the mean of the batch away, which it says it does in training only."""

    lookahead = "in training"

    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().scores(x_TD)
        return logits_TE - logits_TE.mean(dim=0)


@breaks("prefix", "tokens, taken alone, differ in")
class ScalesByLength(Good):
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        length_T = torch.bincount(context.sequence_T)[context.sequence_T]
        return self.select(self.scores(x_TD) * length_T[:, None].log(), context)


@breaks("prefix", "but in training, the first")
class NoiseOfTheBatch(Good):
    """Draws as many numbers as there are tokens, so that a token's depend on how many those are."""

    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = self.gate(x_TD)
        if self.training:
            logits_TE = logits_TE + torch.randn(logits_TE.T.shape).T
        return logits_TE


@breaks("batch_mates", "but in evaluation, a sequence of a batch of 3")
class CentredOnOthers(Good):
    """Takes away the mean logits of the other sequences, of which its own tokens know nothing."""

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.scores(x_TD)
        if not self.training and context.n_sequences > 1:
            own_TT = context.sequence_T[:, None] == context.sequence_T
            others_TT = (~own_TT).float()
            logits_TE = logits_TE - others_TT @ logits_TE / others_TT.sum(1, keepdim=True)
        return self.select(logits_TE, context)


@breaks("batch_mates", "but in training, a sequence of a batch of 3")
class PreviousRow(Good):
    """Adds the logits of the token before, across the border of sequences."""

    permutable = False

    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().scores(x_TD)
        return logits_TE + F.pad(logits_TE[:-1], (0, 0, 1, 0))


@breaks("causality", "declares lookahead='never', but in")
@breaks("record", "takes something else than it asks for")
class DropsInForward(Good):
    """A capacity limit of its own that the look-ahead it declares does not know of."""

    fixed_k = False

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        limit = Capacity(factor=1.0, order="position")
        return limit(replace(super().forward(x_TD, context), context=context))


@breaks("causality", "changes state (by")
class CarriesTheFuture(Good):
    """Routes well itself, and hands the last token to the next layer."""

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        return replace(super().forward(x_TD, context), state=x_TD[-1:].expand_as(x_TD))


@breaks("causality", "of the second layer at or before it")
class ReadsTheFuture(Good):
    """Takes from the layer below what tokens elsewhere in the sequence chose."""

    def scores(self, x_TD: Tensor) -> Tensor:
        return self.gate(x_TD)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.scores(x_TD)
        if context.previous is not None:
            logits_TE = logits_TE + context.previous.probs_TE.mean(dim=0)
        return self.select(logits_TE, context)


@breaks("causality", "declares lookahead='never', but in")
class LeaksOnceTrained(Good):
    """Fresh from the constructor it is causal; after a step it takes away the batch's mean."""

    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.register_buffer("share", torch.zeros(()))

    def scores(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().scores(x_TD)
        return logits_TE - self.share * logits_TE.mean(dim=0)

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        self.share.fill_(1.0)
