"""Mixture-of-Experts layers as they are written elsewhere, in the FFN slot of our transformer.

All have E bias-free SwiGLU experts and Mixtral's router (arXiv:2401.04088, section 2.1):
y = Σ_i softmax(top-k(x · W_g))_i · SwiGLU_i(x).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from router_lab.model.ffns.mistral import MistralMLP
from router_lab.model.ffns.mlp import MLP
from router_lab.routing import RouterContext

Layer = Callable[[], nn.Module]


class ModuleList(nn.Module):
    """One module per expert, gate and up in one projection; each finds its tokens and adds its
    part of the output in place."""

    def __init__(self, D: int, F: int, E: int, k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = nn.ModuleList(MLP(D, F) for _ in range(E))
        self.k = k

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Any]]:
        weight_TK, index_TK = self.gate(x_TD).softmax(dim=-1).topk(self.k, dim=-1)
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):
            token, choice = torch.where(index_TK == e)
            out, _ = expert(x_TD[token], context)
            y_TD.index_add_(0, token, out * weight_TK[token, choice, None])
        return y_TD, {}


class ArticleLoop(nn.Module):
    """The article's equation read from left to right: three projections per expert, the softmax
    over the chosen logits, and a sum into the rows of the output."""

    def __init__(self, D: int, F: int, E: int, k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = nn.ModuleList(MistralMLP(D, F) for _ in range(E))
        self.k = k

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Any]]:
        logit_TK, index_TK = self.gate(x_TD).topk(self.k, dim=-1)
        weight_TK = logit_TK.softmax(dim=-1)
        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):
            token, choice = torch.where(index_TK == e)
            y_TD[token] += weight_TK[token, choice, None] * expert(x_TD[token], context)[0]
        return y_TD, {}


class Transformers(nn.Module):
    """Mixtral's block of the installed transformers, with one of its implementations of the
    experts: `eager`, `grouped_mm`, …"""

    def __init__(self, D: int, F: int, E: int, k: int, implementation: str) -> None:
        super().__init__()
        from transformers.models.mixtral.configuration_mixtral import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(
            hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k
        )
        config._experts_implementation = implementation
        self.block = MixtralSparseMoeBlock(config)  # type: ignore[no-untyped-call]
        for weight in self.block.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Any]]:
        y_1TD = self.block(x_TD[None])
        return (y_1TD[0] if isinstance(y_1TD, tuple) else y_1TD)[0], {}


def peers(D: int, F: int, E: int, k: int) -> dict[str, Layer]:
    """The layers by name; transformers' where it is installed."""
    layers: dict[str, Layer] = {
        "module list": lambda: ModuleList(D, F, E, k),
        "article's loop": lambda: ArticleLoop(D, F, E, k),
    }
    if find_spec("transformers"):
        layers |= {
            "transformers grouped_mm": lambda: Transformers(D, F, E, k, "grouped_mm"),
            "transformers eager": lambda: Transformers(D, F, E, k, "eager"),
        }
    return layers
