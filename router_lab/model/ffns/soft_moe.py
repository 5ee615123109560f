"""Soft MoE: experts process mixtures of tokens, and tokens get mixtures of the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.model.experts import StackedExperts
from router_lab.model.ffn import BALANCED, FFN, Gated, Load
from router_lab.registry import register
from router_lab.routing import RouterContext, Routing, refused


@register("soft_moe")
class SoftMoE(FFN):
    """Y = C · f(Dᵀ X) for the tokens X of each sequence: no drops, no idle experts.

    Z = X Φ has a column per slot; D is the softmax of Z over the tokens of the sequence, C over the
    slots; expert i computes its p slots, which are rows of Dᵀ X. With `normalize`, rows of X and
    columns of Φ are scaled to length 1, and Φ by a learned scalar (section 2.3).

    Every slot sees the whole sequence, in evaluation too, so the loss must not be compared with
    that of a model that can generate text.

    The record has every (token, expert) pair; the weight and probability of an expert are the sum
    of C over its slots. The load is therefore balanced by construction (as is the work: p slots
    each), and k_used is E. Importance and confidence entropy describe the mixture. A token costs
    slots / seq_len of one expert.

    Args:
        n_experts: experts E.
        slots_per_expert: p. null: ⌈seq_len / E⌉, so there are as many slots as tokens (the paper's
            way to match the FLOPs of one dense layer).
        seq_len: tokens per sequence, from which slots and cost are counted.
        normalize: as above.
    """

    paper = "Soft MoE, Puigcerver et al. 2023, arXiv:2308.00951, eq. 1–3"
    reference = "golden outputs of google-research/vmoe; a loop over sequences, slots and tokens"
    lookahead = "always"
    gates = ("slot_ND",)

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        n_experts: int = 8,
        slots_per_expert: int | None = None,
        seq_len: int = 256,
        normalize: bool = True,
    ) -> None:
        super().__init__(d_model, d_hidden)
        sizes = {"n_experts": n_experts, "slots_per_expert": slots_per_expert, "seq_len": seq_len}
        for option, value in sizes.items():
            if value is not None and value < 1:
                raise refused(self, option, value, "at least 1")
        if slots_per_expert is None:
            slots_per_expert = math.ceil(seq_len / n_experts)
        self.slots_per_expert = slots_per_expert
        self.seq_len = seq_len
        self.normalize = normalize
        self.experts = StackedExperts(Gated.random(n_experts, d_model, d_hidden))
        # N = E · p slots; those of an expert are adjacent.
        n_slots = n_experts * slots_per_expert
        self.slot_ND = nn.Parameter(torch.randn(n_slots, d_model) * d_model**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        B, E = context.n_sequences, self.experts.n_experts
        where = (context.sequence_T, context.position_T)
        S = int(context.position_T.max()) + 1
        z_TN = self._logits(x_TD)
        # A padded batch of sequences; padding neither fills a slot nor reads one.
        none = torch.finfo(torch.float32).min
        z_BSN = z_TN.new_full((B, S, z_TN.shape[1]), none).index_put(where, z_TN)
        x_BSD = x_TD.new_zeros(B, S, x_TD.shape[1]).index_put(where, x_TD)
        slots_BND = z_BSN.softmax(dim=1).to(x_TD.dtype).mT @ x_BSD
        rows_ERD = slots_BND.unflatten(1, (E, -1)).transpose(0, 1).flatten(1, 2)
        rows_ERD = self.experts.each(rows_ERD, context)
        slots_BND = rows_ERD.unflatten(1, (B, -1)).transpose(0, 1).flatten(1, 2)
        y_BSD = z_BSN.softmax(dim=2).to(slots_BND.dtype) @ slots_BND
        return y_BSD[where].to(x_TD.dtype), {"": self._record(z_TN, context)}

    def _logits(self, x_TD: Tensor) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD, slot_ND = x_TD.float(), self.slot_ND.float()
            if self.normalize:
                x_TD, slot_ND = F.normalize(x_TD, dim=-1), F.normalize(slot_ND, dim=-1) * self.scale
            return F.linear(x_TD, slot_ND)

    def _record(self, z_TN: Tensor, context: RouterContext) -> Routing:
        E = self.experts.n_experts
        logits_TE = z_TN.unflatten(1, (E, -1)).logsumexp(dim=-1)
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.sort(dim=-1, descending=True, stable=True)
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, context=context)

    def output_weights(self) -> Iterator[Tensor]:
        return self.experts.output_weights()

    def active_params(self) -> float:
        return self._experts_met() * self.experts.active_params() + self.slot_ND.numel() + 1

    def matmul_params(self, load: Load = BALANCED, rows: float = 1.0) -> float:
        """Includes the products with Dᵀ and C, D · N per token each."""
        return rows * (
            self._experts_met() * self.experts.active_params() + 3 * self.slot_ND.numel()
        )

    def _experts_met(self) -> float:
        """Slots computed per token: how many experts a token costs."""
        return len(self.slot_ND) / self.seq_len
