"""Dispatch of tokens to rows sorted by expert, and combine.

Both directions gather, forward and backward: a gather runs at memory speed and is deterministic; a
scatter-add into the tokens is neither. Nothing here waits for a GPU but `Plan.sizes`.

R rows, one per assignment; T tokens; E experts; D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from router_lab.routing import Assignments, count


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of the rows: sorted by expert, then by assignment.

    Each part is computed when it is first read.

    Attributes:
        n_tokens: T.
        n_experts: E; rows of assignments to others come last, and nobody computes them.
    """

    assignments: Assignments
    n_tokens: int
    n_experts: int

    @cached_property
    def order_R(self) -> Tensor:
        """Assignment of each row, long."""
        return self.assignments.expert_A.argsort(stable=True)

    @cached_property
    def token_R(self) -> Tensor:
        """Token of each row, long."""
        if self.assignments.k is not None:
            return self.order_R.div(self.assignments.k, rounding_mode="floor")
        return self.assignments.token_A[self.order_R]

    @cached_property
    def expert_R(self) -> Tensor:
        """Expert of each row, long."""
        return self.assignments.expert_A[self.order_R]

    @cached_property
    def ends_E(self) -> Tensor:
        """Where the rows of each expert end, int32."""
        return self.assignments.count_E[: self.n_experts].cumsum(0, dtype=torch.int32)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of rows per expert. Waits for a GPU."""
        sizes: list[int] = self.assignments.count_E[: self.n_experts].tolist()
        return sizes

    @cached_property
    def idle_R1(self) -> Tensor | None:
        """Which rows nobody computes, bool [R, 1]; None if there can be none."""
        if self.assignments.n_experts == self.n_experts:
            return None
        return (self.expert_R >= self.n_experts)[:, None]

    @cached_property
    def _by_token_A(self) -> Tensor | None:
        """The assignments sorted by token; None if they already are."""
        if self.assignments.k is not None:
            return None
        return self.assignments.token_A.argsort(stable=True)

    @cached_property
    def row_A(self) -> Tensor:
        """Row of each assignment, long; assignments sorted by token."""
        place_R = torch.arange(len(self.order_R), device=self.order_R.device)
        row_A = torch.empty_like(place_R).scatter_(0, self.order_R, place_R)
        return row_A if self._by_token_A is None else row_A[self._by_token_A]

    @cached_property
    def start_T(self) -> Tensor:
        """Where in `row_A` the rows of each token start, long."""
        k, A = self.assignments.k, len(self.assignments)
        if k is not None:
            return torch.arange(0, A, k, device=self.order_R.device)
        number_T = count(self.assignments.token_A, self.n_tokens)
        return number_T.cumsum(0) - number_T

    def gather(self, x_TD: Tensor) -> Tensor:
        """The token of each row [R, D]."""
        return torch.embedding(x_TD, self.token_R)

    def sum(self, rows_RD: Tensor, weight_A: Tensor | None = None) -> Tensor:
        """The (weighted) sum of each token's rows [T, D]; zero for a token without rows."""
        if not len(rows_RD):
            return rows_RD.new_zeros(self.n_tokens, rows_RD.shape[1])
        if weight_A is not None:
            weight_A = weight_A.to(rows_RD.dtype)
            weight_A = weight_A if self._by_token_A is None else weight_A[self._by_token_A]
        return bag(rows_RD, self.row_A, self.start_T, weight_A)


def bag(rows_RD: Tensor, row_A: Tensor, start_N: Tensor, weight_A: Tensor | None = None) -> Tensor:
    """Sums of rows in one pass over them [N, D]: sum n is of rows row_A[start_N[n] :
    start_N[n + 1]]."""
    return torch.embedding_bag(rows_RD, row_A, start_N, False, 0, False, weight_A)[0]


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return plan.gather(x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        return ctx.plan.sum(grad_RD.contiguous()), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weight_A: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(rows_RD, weight_A)
        return plan.sum(rows_RD, weight_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_RD, weight_A = ctx.saved_tensors
        order_R, grad_RD = ctx.plan.order_R, ctx.plan.gather(grad_TD.contiguous())
        grad_R = (rows_RD * grad_RD).sum(dim=1).to(weight_A.dtype)
        grad_A = torch.empty_like(weight_A).scatter_(0, order_R, grad_R)
        return grad_RD.mul_(weight_A[order_R, None]), grad_A, None


def dispatch(x_TD: Tensor, plan: Plan) -> Tensor:
    """One row per assignment, sorted by expert [R, D]."""
    rows_RD: Tensor = _Dispatch.apply(x_TD, plan)  # type: ignore[no-untyped-call]
    return rows_RD


def combine(rows_RD: Tensor, weight_A: Tensor, plan: Plan) -> Tensor:
    """The weighted sum of each token's rows [T, D]; zero for a token without rows."""
    y_TD: Tensor = _Combine.apply(rows_RD, weight_A, plan)  # type: ignore[no-untyped-call]
    return y_TD


def refused_by_grouped_mm(weight_EIO: Tensor) -> str:
    """Why F.grouped_mm does not take this weight, as the end of a sentence; "" if it does."""
    dtype, widths = weight_EIO.dtype, weight_EIO.shape[1:]
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"does not multiply in {str(dtype).removeprefix('torch.')}"
    step = 16 // dtype.itemsize
    if any(width % step for width in widths):
        return f"needs widths that are multiples of {step}, and here they are {tuple(widths)}"
    return ""
