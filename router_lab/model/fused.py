"""Rotary positions, RMSNorm and SwiGLU as one autograd function each, with few passes over data.

Under torch.compile, which fuses by itself and refuses writes into a slice, they are the plain
formulas.

B batch, S sequence, H heads, D width of what is normalised or of a head, N rows, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _turn(x_BSHD: Tensor, cos_SD: Tensor, sin_SD: Tensor, out_BSHD: Tensor, sense: int = 1) -> None:
    """Rotates each pair (x_i, x_{i + D/2}) by `sense` times the angle of its position and i."""
    half, sin_S1D = x_BSHD.shape[-1] // 2, sin_SD[:, None, :]
    torch.mul(x_BSHD, cos_SD[:, None, :], out=out_BSHD)
    out_BSHD[..., :half].addcmul_(x_BSHD[..., half:], sin_S1D, value=-sense)
    out_BSHD[..., half:].addcmul_(x_BSHD[..., :half], sin_S1D, value=sense)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_BSD: Tensor, n_heads: int, cos_SD: Tensor, sin_SD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos_SD, sin_SD)
        q, k, v = qkv_BSD.unflatten(-1, (3, n_heads, -1)).unbind(2)
        turned = qkv_BSD.new_empty(2, *q.shape)
        for x_BSHD, out_BSHD in zip((q, k), turned, strict=True):
            _turn(x_BSHD, cos_SD, sin_SD, out_BSHD)
        return turned[0].transpose(1, 2), turned[1].transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> tuple[Tensor, None, None, None]:
        cos_SD, sin_SD = ctx.saved_tensors
        B, H, S, D = grad_q.shape
        grad = grad_q.new_empty(B, S, 3, H, D)
        for i, x_BHSD in enumerate((grad_q, grad_k)):
            _turn(x_BHSD.transpose(1, 2), cos_SD, sin_SD, grad[:, :, i], sense=-1)
        grad[:, :, 2] = grad_v.transpose(1, 2)
        return grad.flatten(2), None, None, None


def split_heads(
    qkv_BSD: Tensor, n_heads: int, cos_SD: Tensor, sin_SD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with rotary positions (arXiv:2104.09864), and values, each [B, H, S, D].

    Args:
        qkv_BSD: all heads' queries, then keys, then values [B, S, 3 · H · D].
        cos_SD: of the angle of each position and pair, for both of the pair [S, D].
        sin_SD: the same, once [S, D / 2].
    """
    if torch.compiler.is_compiling():
        q, k, v = (x.transpose(1, 2) for x in qkv_BSD.unflatten(-1, (3, n_heads, -1)).unbind(2))
        cos_SD, sin_SD = cos_SD.to(q.dtype), torch.cat([-sin_SD, sin_SD], dim=-1).to(q.dtype)
        half = q.shape[-1] // 2
        q, k = (x * cos_SD + x.roll(half, dims=-1) * sin_SD for x in (q, k))
        return q, k, v
    heads: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(  # type: ignore[no-untyped-call]
        qkv_BSD, n_heads, cos_SD.to(qkv_BSD.dtype), sin_SD.to(qkv_BSD.dtype)
    )
    return heads


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean x² + ε)^-1/2; ∂x = r w g − x r³ mean(w g x), ∂w = Σ g x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, r)
        y: Tensor = (x * r).mul_(weight_D)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, r = ctx.saved_tensors
        D = x.shape[-1]
        grad_x_ND = (grad * x).view(-1, D)
        grad_weight_D = torch.mv(grad_x_ND.T, r.view(-1))
        mean = torch.mv(grad_x_ND, weight_D).view_as(r) / D
        out = (grad * weight_D).mul_(r).addcmul_(x, mean.mul_(r**3), value=-1)
        return out, grad_weight_D, None


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x² + ε) with a gain (arXiv:1910.07467), in one function on a CPU."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        fused = x.device.type == "cpu" and x.dtype == self.weight.dtype and x.is_contiguous()
        if fused and not torch.compiler.is_compiling():
            y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return y
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class _SwiGLU(torch.autograd.Function):
    """Saves its input alone, and writes both halves of the gradient in place."""

    @staticmethod
    def forward(ctx: Any, gate_up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_NF)
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        return F.silu(gate_NF).mul_(up_NF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> Tensor:
        (gate_up_NF,) = ctx.saved_tensors
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up_NF)
        grad_gate_NF, grad_up_NF = grad.chunk(2, dim=-1)
        torch.mul(grad_NF, F.silu(gate_NF), out=grad_up_NF)
        torch.ops.aten.silu_backward.grad_input(grad_NF * up_NF, gate_NF, grad_input=grad_gate_NF)
        return grad


def swiglu(gate_up_NF: Tensor) -> Tensor:
    """SiLU of the first half of each row times the second half [N, F / 2]."""
    if torch.compiler.is_compiling():
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        return F.silu(gate_NF) * up_NF
    hidden_NF: Tensor = _SwiGLU.apply(gate_up_NF)  # type: ignore[no-untyped-call]
    return hidden_NF
