"""Mixture-of-Depths in the FFN slot: some tokens of a sequence are computed, the others skip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.model.ffn import BALANCED, DENSE, FFN, Load, build_ffn
from router_lab.registry import register
from router_lab.routing import (
    Gate,
    Lookahead,
    Router,
    RouterContext,
    Routing,
    TokenCounts,
    count,
    furthest,
    refused,
)
from router_lab.runs.layers import qualified, within


@register("mixture_of_depths")
class MixtureOfDepths(FFN):
    """y = r_t f(x_t) for the ⌈share · n⌉ largest r = x·w of the n tokens of a sequence, else 0.

    Here only the feed-forward layer is skipped; the paper skips whole blocks. Selecting the largest
    needs the whole sequence, so a small predictor learns, from x without gradient, whether a token
    will be selected (section 3.5), and it decides in evaluation. Only training looks ahead:
    evaluation measures the loss and k_used of a model that can generate text.

    The record has one expert. k_used is the share of tokens that it computes; the others count as
    dropped_tokens.

    Args:
        share: share of the tokens that are computed (the paper's capacity).
        expert: config node of f, any FFN.
        d_predictor: inner width of the predictor. null: D / 4.
        predictor_coef: weight of its binary cross-entropy in the training loss. Only the predictor
            gets a gradient from it.
        token_counts: see `Router`.
    """

    paper = "Mixture-of-Depths, Raposo et al. 2024, arXiv:2404.02258, eq. 1 and section 3.5"
    reference = (
        "golden outputs of Mixture-AI/Mixture-of-Depths; a loop (the authors published none)"
    )
    lookahead: Lookahead = "in training"  # set again on the instance
    own_losses = {"depth_predictor": 0.01}

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        share: float = 0.125,
        expert: Mapping[str, Any] = DENSE,
        d_predictor: int | None = None,
        predictor_coef: float = 0.01,
        token_counts: TokenCounts | None = None,
    ) -> None:
        super().__init__(d_model, d_hidden)
        if not 0 < share <= 1:
            raise refused(self, "share", share, "above 0 and at most 1")
        if d_predictor is None:
            d_predictor = max(d_model // 4, 1)
        if d_predictor < 1:
            raise refused(self, "d_predictor", d_predictor, "at least 1")
        if predictor_coef < 0:
            raise refused(self, "predictor_coef", predictor_coef, "0 or more")
        self.share = share
        self.predictor_coef = predictor_coef
        self.own_losses = {"depth_predictor": predictor_coef}
        self.gate = Gate(d_model, 1)
        self.expert = build_ffn(expert, d_model, d_hidden, token_counts)
        self.lookahead = furthest("in training", self.expert.lookahead)
        self.default_losses = self.expert.default_losses
        self.predictor = nn.Sequential(
            Gate(d_model, d_predictor, bias=True), nn.SiLU(), Gate(d_predictor, 1, bias=True)
        )

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        r_T = self.gate(x_TD).squeeze(1)
        predicted_T = self.predictor(x_TD.detach()).squeeze(1)
        losses = {}
        if self.training:
            chosen_T = self._largest(r_T.detach(), context)
            missed = F.binary_cross_entropy_with_logits(predicted_T, chosen_T.float())
            losses = {"depth_predictor": self.predictor_coef * missed}
        else:
            chosen_T = predicted_T > 0
        routing = Routing.from_mask(
            chosen_T[:, None],
            r_T[:, None],
            logits_TE=r_T[:, None],
            probs_TE=torch.ones_like(r_T)[:, None],
            context=context,
            losses=losses,
        )
        y_TD, inner = torch.zeros_like(x_TD), {}
        if len(routing.taken):
            token_A, weight_A = routing.taken.token_A, routing.taken.weight_A
            rows_RD, inner = self.expert(x_TD[token_A], context.select(token_A))
            rows_RD = rows_RD * weight_A[:, None].to(rows_RD.dtype)
            y_TD = y_TD.index_add(0, token_A, rows_RD.to(x_TD.dtype))
        return y_TD, {"": routing, **{qualified("expert0", name): r for name, r in inner.items()}}

    def _largest(self, r_T: Tensor, context: RouterContext) -> Tensor:
        """Marks the tokens with the largest r in each sequence; ties go to the first."""
        place_T = torch.arange(len(r_T), device=r_T.device)
        order_T = r_T.argsort(descending=True, stable=True)
        order_T = order_T[context.sequence_T[order_T].argsort(stable=True)]
        size_B = count(context.sequence_T, context.n_sequences)
        room_B = (self.share * size_B.double() - 1e-9).ceil()
        sequence_T = context.sequence_T[order_T]
        rank_T = place_T - (size_B.cumsum(0) - size_B)[sequence_T]
        return torch.zeros_like(place_T, dtype=torch.bool).index_put(
            (order_T,), rank_T < room_B[sequence_T]
        )

    def routers(self) -> dict[str, Router]:
        return {
            qualified("expert0", name): router for name, router in self.expert.routers().items()
        }

    def output_weights(self) -> Iterator[Tensor]:
        return self.expert.output_weights()

    def active_params(self) -> float:
        always = sum(p.numel() for m in (self.gate, self.predictor) for p in m.parameters())
        return always + self.share * self.expert.active_params()

    def matmul_params(self, load: Load = BALANCED, rows: float = 1.0) -> float:
        both = (self.gate, self.predictor)
        always = sum(p.numel() for m in both for p in m.parameters() if p.dim() >= 2)
        chosen = load[""][0] if load else rows * self.share
        return rows * always + self.expert.matmul_params(within(load, "expert0"), chosen)
