"""Experts, applied to rows that are sorted by expert.

R rows (one per assignment), E experts, D model width, F expert width. `sizes` is the number of rows
per expert, a list on the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from router_lab.model.ffn import FFN, Load
from router_lab.routing import Lookahead, Router, RouterContext, Routing, furthest
from router_lab.runs.layers import qualified, within


class GroupedLinear(torch.autograd.Function):
    """Multiplies the rows of expert e by weight e and writes each product directly into its slice.

    If the stacked weight were indexed expert by expert, autograd would build a gradient of the
    whole stack for each expert; here each slice of the gradient is written once.
    """

    @staticmethod
    def forward(ctx: Any, rows_RI: Tensor, weight_EIO: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows_RI, weight_EIO)
        ctx.sizes = sizes
        out_RO = rows_RI.new_empty(rows_RI.shape[0], weight_EIO.shape[2])
        for rows, weight, out in zip(
            rows_RI.split(sizes), weight_EIO.unbind(0), out_RO.split(sizes), strict=True
        ):
            torch.mm(rows, weight, out=out)
        return out_RO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows_RI, weight_EIO = ctx.saved_tensors
        grads = grad_RO.split(ctx.sizes)
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = torch.empty_like(rows_RI)
            for grad, weight, out in zip(
                grads, weight_EIO.unbind(0), grad_rows.split(ctx.sizes), strict=True
            ):
                torch.mm(grad, weight.T, out=out)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight_EIO)
            for rows, grad, out in zip(
                rows_RI.split(ctx.sizes), grads, grad_weight.unbind(0), strict=True
            ):
                torch.mm(rows.T, grad, out=out)
        return grad_rows, grad_weight, None


def grouped_linear(rows_RI: Tensor, weight_EIO: Tensor, sizes: list[int]) -> Tensor:
    """Multiplies the rows of expert e by weight e. Respects autocast, like a linear layer."""
    device = rows_RI.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows_RI, weight_EIO = rows_RI.to(dtype), weight_EIO.to(dtype)
    if rows_RI.is_cuda and rows_RI.dtype == torch.bfloat16 and aligned(weight_EIO):
        ends = torch.tensor(sizes, device=rows_RI.device).cumsum(0).to(torch.int32)
        return F.grouped_mm(rows_RI, weight_EIO, offs=ends)
    rows_RO: Tensor = GroupedLinear.apply(rows_RI, weight_EIO, sizes)  # type: ignore[no-untyped-call]
    return rows_RO


def aligned(weight_EIO: Tensor) -> bool:
    """Whether the rows of both operands are multiples of 16 bytes, as F.grouped_mm requires. A
    width solved for a budget may not be."""
    return all(width * weight_EIO.element_size() % 16 == 0 for width in weight_EIO.shape[1:])


class Experts(nn.Module, ABC):
    """A set of experts of one kind."""

    n_experts: int
    lookahead: Lookahead = "never"
    """Whether the output of a row depends on rows of later tokens or of other sequences."""

    @abstractmethod
    def forward(
        self, rows_RD: Tensor, sizes: list[int], token_R: Tensor, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        """The outputs of the rows, and the records of experts that route again.

        Row r is token token_R[r] of `context`.
        """

    def routers(self) -> dict[str, Router]:
        return {}

    def per_expert(self, of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """Applies `of` to every parameter and flattens the results per expert [E, P]."""
        return torch.cat([of(p).flatten(1) for p in self.parameters()], dim=1)

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


class StackedSwiGLU(Experts):
    """E bias-free SwiGLU experts as two stacked weights: the experts of Mixtral."""

    def __init__(self, n_experts: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.gate_up_EDF = nn.Parameter(
            torch.randn(n_experts, d_model, 2 * d_hidden) * d_model**-0.5
        )
        self.down_EFD = nn.Parameter(torch.randn(n_experts, d_hidden, d_model) * d_hidden**-0.5)

    def forward(
        self, rows_RD: Tensor, sizes: list[int], token_R: Tensor, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        return self.swiglu(rows_RD, sizes), {}

    def swiglu(self, rows_RD: Tensor, sizes: list[int]) -> Tensor:
        """The outputs alone, for rows that are not tokens."""
        gate_RF, up_RF = grouped_linear(rows_RD, self.gate_up_EDF, sizes).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate_RF) * up_RF, self.down_EFD, sizes)

    def output_weights(self) -> Iterator[Tensor]:
        yield self.down_EFD

    def active_params(self) -> float:
        return (self.gate_up_EDF.numel() + self.down_EFD.numel()) / self.n_experts


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
        self, rows_RD: Tensor, sizes: list[int], token_R: Tensor, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        outputs, routings = [], {}
        parts = zip(self._each(), rows_RD.split(sizes), token_R.split(sizes), strict=True)
        for e, (expert, rows, token) in enumerate(parts):
            if len(rows) == 0:
                continue
            out, inner = expert(rows, context.select(token, expert=e))
            outputs.append(out)
            routings.update({qualified(f"expert{e}", name): r for name, r in inner.items()})
        return torch.cat(outputs) if outputs else rows_RD, routings

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
