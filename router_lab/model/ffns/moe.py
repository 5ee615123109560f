"""A Mixture of Experts with any router, any experts, and an optional capacity limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from router_lab.capacity import build_capacity
from router_lab.errors import UserError
from router_lab.model.experts import ExpertList, Experts, StackedExperts, special_expert
from router_lab.model.ffn import BALANCED, DENSE, FFN, Gated, Load, build_ffn
from router_lab.model.ffns.mlp import MLP
from router_lab.registry import register
from router_lab.routing import (
    ROUTERS,
    Assignments,
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
        3. The experts: the weighted sum of the outputs of each token's experts, by an engine (see
           router_lab.model.engines).
        4. The special experts, if any, likewise.
        5. Add what the router keeps of x (`keeps_rest`) and the shared expert, if any.

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
        engine: how stacked experts (`mlp`, `mistral`) are computed: cached, grouped, padded, or one
            of a plugin. null: the fastest for device, dtype and shape. All agree up to rounding.
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
        engine: str | None = None,
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
        self.experts = build_experts(expert, n_experts, d_model, d_hidden, token_counts, engine)
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
        compute = self._compute_weighted if self.router.weight_on == "input" else self._compute
        y_TD, inner = compute(x_TD, routing.with_ghosts(), routing.context)
        y_TD = y_TD.to(x_TD.dtype)
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
        self._compute = torch.compiler.disable(self._compute)  # type: ignore[method-assign]

    def _compute(
        self, x_TD: Tensor, computed: Assignments, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        """The weighted sum of the outputs of each token's experts, the special ones included."""
        y_TD, inner = self.experts(x_TD, computed, context)
        n, kinds = self.experts.n_experts, self.kinds
        if "copy" in kinds:  # those of a kind are adjacent
            first = kinds.index("copy")
            past = first + kinds.count("copy")
            other_A = (computed.expert_A < first) | (computed.expert_A >= past)
            copied = replace(computed, weight_A=computed.weight_A.masked_fill(other_A, 0))
            y_TD = y_TD + copied.weight_sum_T(len(x_TD))[:, None].to(x_TD.dtype) * x_TD
        for e in [e for e, kind in enumerate(kinds) if kind == "constant"]:
            index_A = (computed.expert_A == e).nonzero().squeeze(1)
            token_A, weight_A = computed.token_A[index_A], computed.weight_A[index_A]
            rows_AD = self.special[e - n](x_TD.index_select(0, token_A))
            rows_AD = rows_AD * weight_A[:, None].to(rows_AD.dtype)
            y_TD = y_TD.index_add(0, token_A, rows_AD.to(y_TD.dtype))
        return y_TD, inner

    def _compute_weighted(
        self, x_TD: Tensor, computed: Assignments, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        """As `_compute`, but the combine weight multiplies the input of the expert."""
        token_A, weight_A = computed.token_A, computed.weight_A
        rows_AD = x_TD.index_select(0, token_A) * weight_A[:, None].to(x_TD.dtype)
        alone = replace(
            computed,
            token_A=torch.arange(len(token_A), device=token_A.device),
            weight_A=torch.ones_like(weight_A),
            k=1,
        )
        y_AD, inner = self._compute(rows_AD, alone, context.select(token_A))
        return torch.zeros_like(x_TD).index_add(0, token_A, y_AD.to(x_TD.dtype)), inner

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
    engine: str | None = None,
) -> Experts:
    """Stacked weights for gated experts, a list of modules for any other kind."""
    config = {name: value for name, value in config.items() if (name, value) != ("bias", False)}
    if config.get("name") == "mlp" and config.keys() <= {"name", "d_hidden"}:
        width = config.get("d_hidden") or d_hidden
        return StackedExperts(Gated.random(n_experts, d_model, width), engine)
    experts = [build_ffn(config, d_model, d_hidden, token_counts) for _ in range(n_experts)]
    gated = [one for expert in experts if (one := expert.gated()) is not None]
    if len(gated) == n_experts:
        return StackedExperts(Gated.stack(gated), engine)
    if engine is not None:
        raise UserError(
            f"ffn.engine={engine} is for experts whose weights can be stacked (mlp, mistral), not "
            f"for ffn.expert={config['name']}; leave it out."
        )
    return ExpertList(experts)
