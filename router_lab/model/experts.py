"""Experts, and how they carry out assignments to them.

T tokens, R rows (one per assignment), E experts, D model width, F expert width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from router_lab.model.dispatch import Plan, combine, dispatch
from router_lab.model.engines import engine_for
from router_lab.model.ffn import FFN, Gated, Load
from router_lab.routing import Assignments, Lookahead, Router, RouterContext, Routing, furthest
from router_lab.runs.layers import qualified, within


class Experts(nn.Module, ABC):
    """A set of experts of one kind."""

    n_experts: int
    lookahead: Lookahead = "never"
    """Whether the output of a row depends on rows of later tokens or of other sequences."""

    @abstractmethod
    def forward(
        self, x_TD: Tensor, assignments: Assignments, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        """The weighted sum of the outputs of each token's experts [T, D], and the records of
        experts that route again. Assignments to experts ≥ E are left out."""

    @abstractmethod
    def each(self, rows_ERD: Tensor, context: RouterContext) -> Tensor:
        """The outputs of all experts, for as many rows each; row r is token r of `context`."""

    def routers(self) -> dict[str, Router]:
        return {}

    def per_expert(self, of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """Applies `of` to every parameter and flattens the results per expert [E, P]."""
        return torch.cat([of(p).reshape(self.n_experts, -1) for p in self.parameters()], dim=1)

    @abstractmethod
    def output_weights(self) -> Iterator[Tensor]:
        """As FFN.output_weights."""

    @abstractmethod
    def active_params(self) -> float:
        """Parameters per row, averaged over the experts."""

    def matmul_params(self, rows_E: Sequence[float], load: Load) -> float:
        """Total weight elements multiplied with if expert e gets rows_E[e] rows.

        Args:
            load: for experts that route again, see FFN.matmul_params.
        """
        return sum(rows_E) * self.active_params()


class StackedExperts(Experts):
    """E gated experts as stacked weights, carried out by an engine.

    Args:
        experts: their weights.
        engine: name of the engine; None: the fastest (see `engine_for`).
    """

    def __init__(self, experts: Gated, engine: str | None = None) -> None:
        super().__init__()
        self.n_experts = len(experts.gate_up_EDF)
        self.act = experts.act
        self.engine = engine
        self.gate_up_EDF = nn.Parameter(experts.gate_up_EDF)
        self.down_EFD = nn.Parameter(experts.down_EFD)
        # In one dimension, as those of a single expert: an optimiser decays what has two.
        self.gate_up_bias: nn.Parameter | None = None
        self.down_bias: nn.Parameter | None = None
        if experts.gate_up_bias_EF is not None and experts.down_bias_ED is not None:
            self.gate_up_bias = nn.Parameter(experts.gate_up_bias_EF.flatten())
            self.down_bias = nn.Parameter(experts.down_bias_ED.flatten())
        engine_for(engine, experts, 1)  # refuses what cannot run

    def weights(self) -> Gated:
        """In the dtype of autocast, if it is on."""
        up, down = self.gate_up_bias, self.down_bias
        experts = Gated(
            self.act,
            self.gate_up_EDF,
            self.down_EFD,
            None if up is None else up.view(self.n_experts, -1),
            None if down is None else down.view(self.n_experts, -1),
        )
        device = self.down_EFD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            experts = experts.map(lambda t: t.to(dtype))
        return experts

    def forward(
        self, x_TD: Tensor, assignments: Assignments, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        experts = self.weights()
        engine = engine_for(self.engine, experts, len(assignments))
        plan = Plan(assignments, len(x_TD), self.n_experts)
        return engine(x_TD.to(experts.down_EFD.dtype), experts, plan), {}

    def each(self, rows_ERD: Tensor, context: RouterContext) -> Tensor:
        """As the base class; the rows need not be tokens."""
        experts = self.weights()
        return experts(rows_ERD.to(experts.down_EFD.dtype))

    def output_weights(self) -> Iterator[Tensor]:
        yield self.down_EFD

    def active_params(self) -> float:
        return sum(p.numel() for p in self.parameters()) / self.n_experts


class ExpertList(Experts):
    """Experts of any kind, one module each. Experts that route again make the layer
    hierarchical."""

    def __init__(self, experts: list[FFN]) -> None:
        super().__init__()
        self.n_experts = len(experts)
        self.experts = nn.ModuleList(experts)
        self.lookahead = furthest(*(expert.lookahead for expert in experts))

    def _each(self) -> list[FFN]:
        return [expert for expert in self.experts if isinstance(expert, FFN)]

    def forward(
        self, x_TD: Tensor, assignments: Assignments, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        plan = Plan(assignments, len(x_TD), self.n_experts)
        outputs, routings = [], {}
        sizes = [*plan.sizes, len(assignments) - sum(plan.sizes)]
        *parts, idle_RD = dispatch(x_TD, plan).split(sizes)
        for e, (expert, rows) in enumerate(zip(self._each(), parts, strict=True)):
            if len(rows) == 0:
                continue
            token = plan.token_R.split(sizes)[e]
            out, inner = expert(rows, context.select(token, expert=e))
            outputs.append(out)
            routings.update({qualified(f"expert{e}", name): r for name, r in inner.items()})
        dtype = outputs[0].dtype if outputs else x_TD.dtype
        rows_RD = torch.cat([*outputs, torch.zeros_like(idle_RD, dtype=dtype)])
        return combine(rows_RD, assignments.weight_A, plan), routings

    def each(self, rows_ERD: Tensor, context: RouterContext) -> Tensor:
        all_R = torch.arange(rows_ERD.shape[1], device=rows_ERD.device)
        pairs = enumerate(zip(self._each(), rows_ERD, strict=True))
        return torch.stack([e(rows, context.select(all_R, expert=i))[0] for i, (e, rows) in pairs])

    def routers(self) -> dict[str, Router]:
        return {
            qualified(f"expert{e}", name): router
            for e, expert in enumerate(self._each())
            for name, router in expert.routers().items()
        }

    def per_expert(self, of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        rows = [[of(p).flatten() for p in expert.parameters()] for expert in self.experts]
        return torch.stack([torch.cat(row) for row in rows])

    def output_weights(self) -> Iterator[Tensor]:
        for expert in self._each():
            yield from expert.output_weights()

    def active_params(self) -> float:
        return sum(expert.active_params() for expert in self._each()) / self.n_experts

    def matmul_params(self, rows_E: Sequence[float], load: Load) -> float:
        each = enumerate(zip(self._each(), rows_E, strict=True))
        return sum(one.matmul_params(within(load, f"expert{e}"), rows) for e, (one, rows) in each)


class ConstantExpert(nn.Module):
    """y = a₁ x + a₂ v, a = softmax(W x), v learned: MoE++'s constant expert (arXiv:2410.07348)."""

    gates = ("mix.weight",)

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.value_D = nn.Parameter(torch.randn(d_model) * d_model**-0.5)
        self.mix = nn.Linear(d_model, 2, bias=False)

    def forward(self, rows_RD: Tensor) -> Tensor:
        mix_R2 = self.mix(rows_RD).softmax(dim=-1)
        mixed_RD: Tensor = mix_R2[:, :1] * rows_RD + mix_R2[:, 1:] * self.value_D
        return mixed_RD


class ZeroExpert(nn.Module):
    """y = 0: the token is discarded (MoE++)."""

    def forward(self, rows_RD: Tensor) -> Tensor:
        return torch.zeros_like(rows_RD)


class CopyExpert(nn.Module):
    """y = x: the token is left as it is (MoE++'s copy, LongCat's identity expert)."""

    def forward(self, rows_RD: Tensor) -> Tensor:
        return rows_RD


def special_expert(kind: str, d_model: int) -> nn.Module:
    """The special expert of this kind: one without a feed-forward computation."""
    if kind == "constant":
        return ConstantExpert(d_model)
    return ZeroExpert() if kind == "zero" else CopyExpert()
