"""Engines: how stacked experts carry out their assignments.

All give the same output and gradients up to rounding. `engine_for` chooses one by device, dtype and
shape; `ffn.engine` overrides it. One in another package joins by an entry point
`router_lab.engines`.

R rows, one per assignment; T tokens; E experts; D model width; F expert width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from router_lab.errors import UserError
from router_lab.model.dispatch import Plan, bag, combine, dispatch, refused_by_grouped_mm
from router_lab.model.ffn import ACTIVATIONS, SLOPES, Gated
from router_lab.registry import Registry, register

TILE = 2**19
"""Bytes of hidden values that one tile of `cached` has at most: half of a core's second cache."""
FEW = 2**18
"""Bytes of hidden values per expert below which the calls of `cached` cost more than it saves."""


class Engine(ABC):
    """Base of every engine. It has no options and keeps no state."""

    waits = False
    """Whether it reads a value on the host, which waits for a GPU and breaks a compiled graph."""

    def refuses(self, experts: Gated) -> str:
        """Why it cannot run these experts, as the end of a sentence; "" if it can."""
        return ""

    @abstractmethod
    def __call__(self, x_TD: Tensor, experts: Gated, plan: Plan) -> Tensor:
        """The weighted sum of the outputs of each token's experts [T, D]; x and weights have one
        dtype, and so has the output."""


ENGINES: Registry[Engine] = Registry("engine", Engine, "router_lab.model.engines", "engines")


def engine_for(name: str | None, experts: Gated, n_rows: int) -> Engine:
    """The engine of that name, or the fastest for this device, dtype and shape.

    On the CPU: `grouped` where an expert has few hidden values (see FEW), otherwise `cached`. On
    other devices: `grouped` in bfloat16, otherwise `padded`, since F.grouped_mm loops over the
    experts there and waits for the device. What `grouped` refuses goes to the other one.

    Raises UserError if the engine named cannot run these experts.
    """
    if name is not None:
        engine = ENGINES.build({"name": name})
        if reason := engine.refuses(experts):
            raise UserError(f"ffn.engine={name} {reason}; leave it out, or use another.")
        return engine
    up_EDF = experts.gate_up_EDF
    if up_EDF.device.type == "cpu":
        hidden = n_rows / len(up_EDF) * up_EDF.shape[2] * up_EDF.element_size()
        return CACHED if hidden >= FEW or GROUPED.refuses(experts) else GROUPED
    fast = up_EDF.dtype == torch.bfloat16 and not GROUPED.refuses(experts)
    return GROUPED if fast else PADDED


@dataclass(frozen=True, eq=False)
class _Whole:
    """All rows at once, with a grouped product for all experts."""

    plan: Plan
    rows: ClassVar = slice(None)

    def times(self, rows_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None = None) -> Tensor:
        """Each row times the weight of its expert, plus its bias [R, O]."""
        out_RO = F.grouped_mm(rows_RI, weight_EIO, offs=self.plan.ends_E)
        if bias_EO is not None:
            out_RO += self.of(bias_EO)
        if self.plan.idle_R1 is not None:
            out_RO.masked_fill_(self.plan.idle_R1, 0)  # left uninitialised
        return out_RO

    def of(self, bias_EO: Tensor) -> Tensor:
        """The bias of each row's expert; 0 for a row of none of them."""
        bias_RO = bias_EO.index_select(0, self.plan.expert_R.clamp_max(len(bias_EO) - 1))
        idle_R1 = self.plan.idle_R1
        return bias_RO if idle_R1 is None else bias_RO.masked_fill(idle_R1, 0)

    def outer(self, rows_RI: Tensor, grad_RO: Tensor, into_EIO: Tensor) -> Tensor:
        """`into_EIO`, with the gradient of the weight in `times`."""
        return F.grouped_mm(rows_RI.T, grad_RO, offs=self.plan.ends_E)

    def totals(self, grad_RO: Tensor, into_EO: Tensor) -> Tensor:
        """`into_EO`, with the gradient of the bias in `times`."""
        ones_R8 = grad_RO.new_ones(len(grad_RO), 8)  # 16 bytes, as grouped_mm wants
        return F.grouped_mm(ones_R8.T, grad_RO, offs=self.plan.ends_E)[:, 0]

    def add(self, rows_RD: Tensor, into_TD: Tensor, weight_R1: Tensor | None = None) -> Tensor:
        """`into_TD`, with the (weighted) rows of each token added."""
        return self.plan.sum(rows_RD, None if weight_R1 is None else self.plan.assignments.weight_A)


@dataclass(frozen=True, eq=False)
class _Tile:
    """Some rows of one expert, few enough to stay in the cache; methods as in `_Whole`."""

    plan: Plan
    rows: slice
    expert: int
    first: bool
    """Whether it is the expert's first tile, which overwrites what the gradients held."""

    def times(self, rows_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None = None) -> Tensor:
        if bias_EO is None:
            return torch.mm(rows_RI, weight_EIO[self.expert])
        return torch.addmm(bias_EO[self.expert], rows_RI, weight_EIO[self.expert])

    def of(self, bias_EO: Tensor) -> Tensor:
        return bias_EO[self.expert]

    def outer(self, rows_RI: Tensor, grad_RO: Tensor, into_EIO: Tensor) -> Tensor:
        into_IO = into_EIO[self.expert]
        torch.addmm(into_IO, rows_RI.T, grad_RO, beta=0 if self.first else 1, out=into_IO)
        return into_EIO

    def totals(self, grad_RO: Tensor, into_EO: Tensor) -> Tensor:
        into_EO[self.expert] += grad_RO.sum(dim=0)
        return into_EO

    def add(self, rows_RD: Tensor, into_TD: Tensor, weight_R1: Tensor | None = None) -> Tensor:
        rows_RD = rows_RD if weight_R1 is None else rows_RD.mul_(weight_R1)
        return into_TD.index_add_(0, self.plan.token_R[self.rows], rows_RD)


def _tiles(plan: Plan, row_bytes: int) -> Iterator[_Tile]:
    start, most = 0, max(TILE // row_bytes, 64)
    for expert, size in enumerate(plan.sizes):
        for i in range(0, max(size, 1), most):  # without rows, the gradients are set to 0
            rows = slice(start + i, start + min(i + most, size))
            yield _Tile(plan, rows, expert, first=i == 0)
        start += size


class _Layer(torch.autograd.Function):
    """The whole layer, part by part. Of what it computes it keeps gate and up; the rest is
    recomputed in the backward pass, where a product of matrices is not."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_A: Tensor,
        parts: Sequence[_Whole | _Tile],
        plan: Plan,
        act: str,
        keep: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        up_EDF, down_EFD, up_bias, down_bias = weights
        assert up_EDF is not None and down_EFD is not None
        weight_R1 = weight_A[plan.order_R, None].to(x_TD.dtype)
        y_TD, hidden = torch.zeros_like(x_TD), []
        for part in parts:
            x_RD = torch.embedding(x_TD, plan.token_R[part.rows])
            h_RF = part.times(x_RD, up_EDF, up_bias)
            gate_RF, up_RF = h_RF.chunk(2, dim=1)
            out_RD = part.times(ACTIVATIONS[act](gate_RF) * up_RF, down_EFD, down_bias)
            y_TD = part.add(out_RD, y_TD, weight_R1[part.rows])
            if keep:
                hidden.append(h_RF)
        ctx.parts, ctx.plan, ctx.act = parts, plan, act
        ctx.save_for_backward(x_TD, weight_A, weight_R1, *weights, *hidden)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_A, weight_R1, up_EDF, down_EFD, up_bias, down_bias, *hidden = ctx.saved_tensors
        plan, grad_TD = ctx.plan, grad_TD.contiguous()
        up_EFD, down_EDF = up_EDF.mT, down_EFD.mT
        d_up, d_down = torch.empty_like(up_EDF), torch.empty_like(down_EFD)
        d_up_bias = None if up_bias is None else torch.zeros_like(up_bias)
        d_down_bias = None if down_bias is None else torch.zeros_like(down_bias)
        d_x, d_weight_R = torch.zeros_like(x_TD), torch.zeros_like(weight_R1[:, 0])
        for part, h_RF in zip(ctx.parts, hidden, strict=True):
            token_R, w_R1 = plan.token_R[part.rows], weight_R1[part.rows]
            x_RD, dy_RD = torch.embedding(x_TD, token_R), torch.embedding(grad_TD, token_R)
            gate_RF, up_RF = h_RF.chunk(2, dim=1)
            act_RF, slope_RF = SLOPES[ctx.act](gate_RF)
            out_RF, d_out_RF = act_RF * up_RF, part.times(dy_RD, down_EDF)
            torch.sum(out_RF * d_out_RF, dim=1, out=d_weight_R[part.rows])
            d_down = part.outer(out_RF.mul_(w_R1), dy_RD, d_down)
            d_out_RF.mul_(w_R1)
            d_h_RF = torch.empty_like(h_RF)
            d_gate_RF, d_up_RF = d_h_RF.chunk(2, dim=1)
            torch.mul(d_out_RF, act_RF, out=d_up_RF)
            torch.mul(d_out_RF.mul_(up_RF), slope_RF, out=d_gate_RF)
            d_up = part.outer(x_RD, d_h_RF, d_up)
            d_x = part.add(part.times(d_h_RF, up_EFD), d_x)
            if down_bias is not None:
                d_weight_R[part.rows] += (dy_RD * part.of(down_bias)).sum(dim=1)
                d_down_bias = part.totals(dy_RD.mul_(w_R1), d_down_bias)
                d_up_bias = part.totals(d_h_RF, d_up_bias)
        d_weight_A = torch.empty_like(weight_A)
        d_weight_A.scatter_(0, plan.order_R, d_weight_R.to(weight_A.dtype))
        return d_x, d_weight_A, None, None, None, None, d_up, d_down, d_up_bias, d_down_bias


def _layer(x_TD: Tensor, experts: Gated, plan: Plan, parts: Sequence[_Whole | _Tile]) -> Tensor:
    keep = torch.is_grad_enabled()
    weight_A = plan.assignments.weight_A
    y_TD: Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
        x_TD, weight_A, parts, plan, experts.act, keep, *experts.tensors
    )
    return y_TD


@register("cached")
class Cached(Engine):
    """One expert after another, in tiles that stay in the cache; no buffer holds all rows."""

    waits = True

    def __call__(self, x_TD: Tensor, experts: Gated, plan: Plan) -> Tensor:
        up_EDF = experts.gate_up_EDF
        return _layer(x_TD, experts, plan, list(_tiles(plan, up_EDF[0, 0].nbytes)))


@register("grouped")
class Grouped(Engine):
    """All experts at once by F.grouped_mm, whose group sizes stay on the device."""

    def refuses(self, experts: Gated) -> str:
        return refused_by_grouped_mm(experts.down_EFD)

    def __call__(self, x_TD: Tensor, experts: Gated, plan: Plan) -> Tensor:
        return _layer(x_TD, experts, plan, [_Whole(plan)])


class _Copies(torch.autograd.Function):
    """Weights of the expert of each block; their gradient without atomic additions."""

    @staticmethod
    def forward(ctx: Any, weight_EIO: Tensor, expert_N: Tensor, first_E: Tensor) -> Tensor:
        ctx.first_E = first_E
        return weight_EIO.index_select(0, expert_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NIO: Tensor) -> tuple[Tensor, None, None]:
        place_N = torch.arange(len(grad_NIO), device=grad_NIO.device)
        grad_EP = bag(grad_NIO.flatten(1), place_N, ctx.first_E)
        return grad_EP.view(-1, *grad_NIO.shape[1:]), None, None


@register("padded")
class Padded(Engine):
    """Blocks of equal size, each of one expert, by a batched product: all shapes are static.

    Each expert fills up its last block with zeros, and each block has a copy of its weights, so at
    balance it computes half as many rows again. For float32 on a GPU, and wherever a graph must not
    depend on the number of rows per expert.
    """

    def __call__(self, x_TD: Tensor, experts: Gated, plan: Plan) -> Tensor:
        E, R = plan.n_experts, len(plan.assignments)
        size = max(R // (2 * E), 16)
        n_blocks = R // size + E
        count_E = plan.assignments.count_E[:E]
        last_E = count_E.add(size - 1).div(size, rounding_mode="floor").cumsum(0)
        first_E = F.pad(last_E[:-1], (1, 0))
        place_N = torch.arange(n_blocks, device=x_TD.device)
        expert_N = torch.searchsorted(last_E, place_N, right=True).clamp_max(E - 1)
        # Rows of one expert are adjacent; they shift to where its first block begins.
        expert_R = plan.expert_R.clamp_max(E - 1)
        shift_E = first_E * size - (plan.ends_E - count_E)
        slot_R = torch.arange(R, device=x_TD.device) + shift_E[expert_R]
        if plan.idle_R1 is not None:
            slot_R = slot_R.masked_fill(plan.idle_R1[:, 0], n_blocks * size)
        rows_SD = x_TD.new_zeros(n_blocks * size + 1, x_TD.shape[1])
        rows_SD = rows_SD.index_copy(0, slot_R, dispatch(x_TD, plan))[:-1]
        blocks = experts.map(lambda t: _Copies.apply(t, expert_N, first_E))  # type: ignore[no-untyped-call]
        out_NSD = blocks(rows_SD.view(n_blocks, size, -1))
        rows_RD = F.pad(out_NSD.flatten(0, 1), (0, 0, 0, 1)).index_select(0, slot_R)
        return combine(rows_RD, plan.assignments.weight_A, plan)


CACHED, GROUPED, PADDED = Cached(), Grouped(), Padded()
