"""GShard: two experts per token, the second at random, behind a capacity limit."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from router_lab.capacity import Capacity, Factor, Order, Scope
from router_lab.check import Amount
from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing, count


@register("gshard")
class GShard(Router):
    """w = p renormalised over the two largest, p = softmax(x W).

    In training the second expert is kept with probability min(1, 2 w₂), and the first one's weight
    stays what it was. An expert carries out ceil(factor · 2T / E), all first choices before second
    ones. Its own loss is coef · E · Σ f_i P_i, f the shares of the first choices alone, P the mean
    of p: coef at balance (E² times the paper's).

    Args:
        second: `random` as above; `all`: always take the second expert.
        coef: weight of the loss.
        factor: room of an expert over 2T / E, in training.
        eval_factor: the same in evaluation; null: the same as in training. 2.0 leaves almost no
            drops. mesh-TensorFlow's `capacity_factor_eval=2.0` is over T / E, which is 1.0 here.
        order: who is served first (see the router `capacity`).
        scope: tokens that share the room (the paper's group): the micro-batch, or each sequence.
    """

    paper = "GShard, Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1"
    reference = "transformers: NLLB-MoE's top-2 gating; the paper's algorithm as a loop"
    fixed_k = False

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        second: Literal["random", "all"] = "random",
        coef: Amount = 0.01,
        factor: Factor = 1.0,
        eval_factor: Factor | None = 2.0,
        order: Order = "position",
        scope: Scope = "batch",
    ) -> None:
        super().__init__(d_model, n_experts, min(2, n_experts))
        self.k = min(2, n_experts)
        self.capacity = Capacity(factor, order, scope, k=self.k, eval_factor=eval_factor)
        self.second = second
        self.coef = coef
        self.own_losses = {"first_choice_balance": coef}
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        top_TK, index_TK = probs_TE.topk(self.k, dim=-1)
        weight_TK = top_TK / top_TK.sum(dim=-1, keepdim=True)
        first_E = count(index_TK[:, 0], self.n_experts) / max(len(x_TD), 1)
        balance = self.n_experts * (first_E * probs_TE.mean(dim=0)).sum()
        losses = {"first_choice_balance": self.coef * balance}
        routing = Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE, losses=losses)
        if not self.training or self.second == "all":
            return routing
        asked_TK = context.uniform(self.k) < 2 * weight_TK
        asked_TK[:, 0] = True
        asked = routing.asked.keep(asked_TK.flatten().nonzero().squeeze(1))
        return replace(routing, asked=asked, taken=asked)
