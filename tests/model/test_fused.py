"""The fused functions against the same formulas in elementwise operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.model.fused import RMSNorm, _RMSNorm, split_heads, swiglu
from router_lab.model.transformer import ModelOptions, Transformer

B, S, H, D = 2, 5, 3, 4


def angles(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    angle_SD = torch.outer(torch.arange(S, dtype=dtype), 10.0 ** -torch.arange(D // 2))
    return angle_SD.cos().repeat(1, 2), angle_SD.sin()


def test_pairs_are_rotated_as_complex_numbers() -> None:
    qkv_BSD = torch.randn(B, S, 3 * H * D, dtype=torch.float64)
    cos_SD, sin_SD = angles()
    q, k, v = split_heads(qkv_BSD, H, cos_SD, sin_SD)
    parts = qkv_BSD.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)
    for turned, plain in ((q, parts[0]), (k, parts[1])):
        pairs = torch.complex(plain[..., : D // 2], plain[..., D // 2 :])
        expected = pairs * torch.complex(cos_SD[:, : D // 2], sin_SD)
        assert torch.allclose(turned, torch.cat([expected.real, expected.imag], dim=-1))
    assert torch.equal(v, parts[2])


def test_the_gradient_of_split_heads() -> None:
    qkv_BSD = torch.randn(B, S, 3 * H * D, dtype=torch.float64, requires_grad=True)
    split = partial(split_heads, n_heads=H, cos_SD=angles()[0], sin_SD=angles()[1])
    assert torch.autograd.gradcheck(split, (qkv_BSD,))


@pytest.mark.parametrize("shape", [(3, D), (2, 3, D), (0, D)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm = RMSNorm(D).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), grad)
    expected = F.rms_norm(x, (D,), norm.weight, 1e-6)
    assert torch.allclose(norm(x), expected)
    theirs = torch.autograd.grad(expected, (x, norm.weight), grad)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b)


def test_the_gradient_of_rms_norm() -> None:
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    weight_D = torch.randn(D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-6), (x, weight_D))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_dtype_than_the_gains_is_left_to_torch(dtype: torch.dtype) -> None:
    x = torch.randn(2, D, dtype=dtype)
    y = RMSNorm(D)(x)
    expected = F.rms_norm(x, (D,), torch.ones(D), 1e-6)
    assert y.dtype == expected.dtype and torch.allclose(y, expected)


def test_swiglu() -> None:
    gate_up = torch.randn(5, 2 * D, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    assert torch.allclose(swiglu(gate_up), gate / (1 + (-gate).exp()) * up)
    assert torch.autograd.gradcheck(swiglu, (gate_up,))


def test_the_dense_model_compiles_as_one_graph() -> None:
    model = Transformer(16, {"name": "mlp"}, ModelOptions(8, 1, n_heads=2, seq_len=6), d_hidden=12)
    tokens_BS = torch.randint(16, (2, 6))

    def gradients(forward: Callable[[Tensor], Any]) -> list[Tensor]:
        loss = forward(tokens_BS).logits_BSV.square().sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(model), gradients(compiled), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
