"""Other people's layers in our slot compute what Mixtral's equation says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import context_of
from torch import Tensor, nn

from router_lab.bench.peers import ArticleLoop, ModuleList, Transformers, peers
from router_lab.model.ffn import FFN

T, D, WIDTH, E, K = 24, 8, 12, 4, 2


def mixture(x_TD: Tensor, gate_ED: Tensor, experts: list[Any]) -> Tensor:
    """Σ_i softmax(top-k(x W))_i · expert_i(x), token by token."""
    rows = []
    for x_D in x_TD:
        logits_E = gate_ED @ x_D
        chosen = logits_E.argsort(descending=True)[:K]
        weights = logits_E[chosen].softmax(0)
        rows.append(sum(w * experts[e](x_D[None])[0] for w, e in zip(weights, chosen, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [ModuleList, ArticleLoop])
def test_loops(kind: type[ModuleList | ArticleLoop]) -> None:
    layer, x_TD, context = kind(D, WIDTH, E, K), torch.randn(T, D), context_of(1, T)
    experts = [lambda x, f=f: f(x, context)[0] for f in layer.experts if isinstance(f, FFN)]
    expected = mixture(x_TD, layer.gate.weight, experts)
    assert torch.allclose(layer(x_TD, context)[0], expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_transformers(implementation: str) -> None:
    pytest.importorskip("transformers", minversion="5")
    layer, x_TD = Transformers(D, WIDTH, E, K, implementation), torch.randn(T, D)
    gate_up, down = layer.block.experts.gate_up_proj, layer.block.experts.down_proj

    def swiglu(e: int) -> Any:
        def expert(x: Tensor) -> Tensor:
            gate, up = F.linear(x, gate_up[e]).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, down[e])

        return expert

    expected = mixture(x_TD, layer.block.gate.weight, [swiglu(e) for e in range(E)])
    assert torch.allclose(layer(x_TD, context_of(1, T))[0], expected, atol=1e-5)


def test_all_peers_train() -> None:
    for build in peers(D, WIDTH, E, K).values():
        layer: nn.Module = build()
        layer(torch.randn(T, D), context_of(1, T))[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
