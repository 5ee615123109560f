"""A Mixture of Experts with any router, any experts, and an optional capacity limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from router_lab.capacity import build_capacity
from router_lab.errors import UserError
from router_lab.model.dispatch import Plan, combine, dispatch, sort_by_expert
from router_lab.model.experts import ExpertList, Experts, StackedSwiGLU, special_expert
from router_lab.model.ffn import BALANCED, DENSE, FFN, Load, build_ffn
from router_lab.model.ffns.mlp import MLP
from router_lab.registry import register
from router_lab.routing import (
    ROUTERS,
    Gate,
    Router,
    RouterContext,
    Routing,
    TokenCounts,
    furthest,
    refused,
)

SPECIAL_KINDS = ("zero", "copy", "constant")


@register("moe")
class MoE(FFN):
    """A Mixture of Experts in two steps, `route` and `carry_out`, which tools may call separately.

    `route`:
        1. The router assigns experts and weights to each token.
        2. The capacity stage, if any, drops what exceeds an expert's capacity.
    `carry_out`:
        3. Dispatch: one row per assignment, sorted by expert.
        4. Each expert computes one slice of rows.
        5. Combine: the weighted sum of each token's rows.
        6. Add what the router keeps of x (`keeps_rest`) and the shared expert, if any.

    Args:
        n_experts: feed-forward experts.
        expert: config node of one expert, any FFN; another `moe` makes the layer hierarchical. Its
            width is the layer's d_hidden unless the node sets one.
        router: config node of the router.
        capacity: options of a `Capacity`; it replaces the router's own limit.
        n_shared: experts that every token passes through, computed as one layer of width
            n_shared · F.
        shared_combine: `add` (DeepSeek-V3: routed + shared), `average` (OLMo-core: (k · routed +
            shared) / (k + 1)), `gate` (Qwen2-MoE: routed + σ(w·x) · shared).
        special: number of experts without a feed-forward computation, by kind (zero, copy,
            constant). The router numbers them after the feed-forward experts.
        token_counts: see `Router`.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        n_experts: int = 8,
        expert: Mapping[str, Any] = DENSE,
        router: Mapping[str, Any] | None = None,
        capacity: Mapping[str, Any] | None = None,
        n_shared: int = 0,
        shared_combine: Literal["add", "average", "gate"] = "add",
        special: Mapping[str, int] | None = None,
        token_counts: TokenCounts | None = None,
    ) -> None:
        super().__init__(d_model, d_hidden)
        for option, value, least in (("n_experts", n_experts, 1), ("n_shared", n_shared, 0)):
            if value < least:
                raise refused(self, option, value, f"at least {least}")
        self.kinds = expert_kinds(n_experts, special or {})
        self.router: Router = ROUTERS.build(
            router or {"name": "softmax_topk"},
            d_model=d_model,
            n_experts=len(self.kinds),
            kinds=self.kinds,
            token_counts=token_counts,
        )
        self.default_losses = self.router.default_losses
        self.capacity = build_capacity(capacity) if capacity else self.router.capacity
        self.experts = build_experts(expert, n_experts, d_model, d_hidden, token_counts)
        limit = self.capacity
        self.lookahead = furthest(
            self.router.lookahead,
            self.experts.lookahead,
            limit.lookahead(self.router, self.kinds) if limit else "never",
        )
        self.special = nn.ModuleList(special_expert(k, d_model) for k in self.kinds[n_experts:])
        self.shared = MLP(d_model, n_shared * d_hidden) if n_shared else None
        self.shared_combine = shared_combine
        self.shared_gate = Gate(d_model, 1) if n_shared and shared_combine == "gate" else None

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        routing = self.route(x_TD, context)
        y_TD, inner = self.carry_out(x_TD, routing)
        return y_TD, {"": routing, **inner}

    def route(self, x_TD: Tensor, context: RouterContext) -> Routing:
        """The router's record, cut to what the capacity stage leaves."""
        routing: Routing = self.router(x_TD, context)
        routing = replace(routing, context=context, kinds=self.kinds if self.special else ())
        return routing if self.capacity is None else self.capacity(routing)

    def carry_out(self, x_TD: Tensor, routing: Routing) -> tuple[Tensor, dict[str, Routing]]:
        """The layer's output [T, D] for this record, and the records of experts that route
        again."""
        computed = routing.with_ghosts()
        plan = sort_by_expert(computed, len(x_TD))
        rows_RD = dispatch(x_TD, plan)
        weight_R = computed.weight_A[plan.order_R]
        if self.router.weight_on == "input":
            rows_RD = rows_RD * weight_R[:, None].to(rows_RD.dtype)
            weight_R = torch.ones_like(weight_R)
        rows_RD, inner = self._experts(rows_RD, plan, routing.context)
        y_TD = combine(rows_RD, weight_R, plan).to(x_TD.dtype)
        if self.router.keeps_rest:
            rest_T = 1 - routing.asked.weight_sum_T(len(x_TD))
            y_TD = y_TD + rest_T[:, None].to(x_TD.dtype) * x_TD
        if self.shared is not None:
            y_TD = self._with_shared(y_TD, x_TD, routing.context)
        return y_TD, inner

    def keep_experts_eager(self) -> None:
        """Excludes the experts from compilation, which would recompile for every number of rows.

        Not a decorator: that would add a second to the import.
        """
        self._experts = torch.compiler.disable(self._experts)  # type: ignore[method-assign]

    def _experts(
        self, rows_RD: Tensor, plan: Plan, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        sizes, n = plan.sizes, self.experts.n_experts
        if not self.special:
            out_RD, inner = self.experts(rows_RD, sizes, plan.token_R, context)
            return out_RD, inner
        ffn_RD, *special = rows_RD.split([sum(sizes[:n]), *sizes[n:]])
        out_RD, inner = self.experts(ffn_RD, sizes[:n], plan.token_R[: len(ffn_RD)], context)
        special = [expert(rows) for expert, rows in zip(self.special, special, strict=True)]
        return torch.cat([out_RD, *(rows.to(out_RD.dtype) for rows in special)]), inner

    def _with_shared(self, routed_TD: Tensor, x_TD: Tensor, context: RouterContext) -> Tensor:
        assert self.shared is not None
        shared_TD: Tensor = self.shared(x_TD, context)[0]
        if self.shared_gate is not None:
            gate_T1: Tensor = self.shared_gate(x_TD).sigmoid()
            return routed_TD + gate_T1.to(shared_TD.dtype) * shared_TD
        if self.shared_combine == "average":
            k = self.router.mean_k
            return (k * routed_TD + shared_TD) / (k + 1)
        return routed_TD + shared_TD

    def routers(self) -> dict[str, Router]:
        return {"": self.router, **self.experts.routers()}

    def output_weights(self) -> Iterator[Tensor]:
        yield from self.experts.output_weights()
        if self.shared is not None:
            yield from self.shared.output_weights()

    def active_params(self) -> float:
        """Counts experts as often as the router selects them: drops do not make the model
        smaller."""
        ffn, special = self._asked()
        modules = (self.router, self.shared, self.shared_gate)
        always = sum(p.numel() for module in modules if module for p in module.parameters())
        each = sum(p.numel() for p in self.special.parameters()) / max(len(self.special), 1)
        return ffn * self.experts.active_params() + special * each + always

    def matmul_params(self, load: Load = BALANCED, rows: float = 1.0) -> float:
        """At balanced load, what exceeds capacity is not computed; there is no padding."""
        if rows == 0:  # an inner layer that never got a token
            return 0.0
        n, n_special = self.experts.n_experts, len(self.special)
        if self.router.runs_all:
            rows_E: Sequence[float] = [rows] * (n + n_special)
        elif load:
            rows_E = load[""]
        else:
            ffn, special = (rows * self._room() * k for k in self._asked())
            rows_E = [ffn / n] * n + [special / max(n_special, 1)] * n_special
        always = self.router.matmul_params() + matrices(self.shared) + matrices(self.shared_gate)
        each = zip(rows_E[n:], self.special, strict=True)
        special = sum(rows * matrices(expert) for rows, expert in each)
        return self.experts.matmul_params(rows_E[:n], load) + special + rows * always

    def _room(self) -> float:
        """Share of the demand at balanced load that fits into the capacity."""
        if self.capacity is None:
            return 1.0
        k = self.router.mean_k
        return min(self.capacity.factor * (self.capacity.k or k) / k, 1.0)

    def _asked(self) -> tuple[float, float]:
        """Mean number of feed-forward and of special experts that the router selects per token."""
        k, k_ffn = self.router.mean_k, self.router.k_ffn
        if k_ffn is None:
            k_ffn = k * self.experts.n_experts / len(self.kinds)
        return k_ffn, k - k_ffn


def matrices(module: nn.Module | None) -> int:
    """Number of elements in the module's weight matrices."""
    return sum(p.numel() for p in module.parameters() if p.dim() >= 2) if module else 0


def expert_kinds(n_experts: int, special: Mapping[str, int]) -> tuple[str, ...]:
    """The kind of every expert in the router's numbering: ffn first, then the special ones."""
    for kind, n in special.items():
        if kind not in SPECIAL_KINDS:
            kinds = ", ".join(SPECIAL_KINDS)
            raise UserError(f"ffn.special has the unknown kind {kind!r}; the kinds are {kinds}.")
        if not isinstance(n, int) or n < 0:
            raise UserError(f"ffn.special.{kind}={n} is not possible; it must be 0 or more.")
    return ("ffn",) * n_experts + tuple(kind for kind, n in special.items() for _ in range(n))


def build_experts(
    config: Mapping[str, Any],
    n_experts: int,
    d_model: int,
    d_hidden: int,
    token_counts: TokenCounts | None = None,
) -> Experts:
    """Stacked weights for bias-free SwiGLU experts, a list of modules for any other kind."""
    config = {name: value for name, value in config.items() if (name, value) != ("bias", False)}
    if config.get("name") == "mlp" and config.keys() <= {"name", "d_hidden"}:
        return StackedSwiGLU(n_experts, d_model, config.get("d_hidden") or d_hidden)
    experts = [build_ffn(config, d_model, d_hidden, token_counts) for _ in range(n_experts)]
    return ExpertList(experts)
