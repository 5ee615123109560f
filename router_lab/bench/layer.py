"""A layer alone, forward and backward: ours and others' over a dense one of equal FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from router_lab.bench.memory import peak_bytes, saved_bytes
from router_lab.bench.peers import Layer, peers
from router_lab.bench.record import Cell, cell
from router_lab.bench.sizes import LayerSize
from router_lab.bench.turns import in_turns
from router_lab.model.ffn import build_ffn
from router_lab.model.ffns.mlp import MLP
from router_lab.routing import RouterContext

MB = 1e6
OURS: Mapping[str, Mapping[str, Any]] = {
    "router_lab": {},
    "router_lab, capacity 1.25": {"capacity": {"factor": 1.25}},
}
"""Our variants: options of the `moe` layer."""


def our_node(E: int, k: int, **options: Any) -> dict[str, Any]:
    router: dict[str, Any] = {"name": "softmax_topk", "k": k}
    if k == 1:  # a renormalised weight would be constant
        router |= {"norm_topk_prob": False, "softmax": "before"}
    return {"name": "moe", "n_experts": E, "router": router, **options}


def measure_layer(size: LayerSize, rounds: int) -> dict[str, Cell]:
    """The cells by contestant; the dense layer sends T · k rows through one expert."""
    T, D, F, E, k = size
    torch.manual_seed(0)
    layers: dict[str, Layer] = {"dense": lambda: MLP(D, F)}
    for name, options in OURS.items():
        node = our_node(E, k, **options)
        layers[name] = lambda node=node: build_ffn(node, D, F)  # type: ignore[misc]
    layers |= peers(D, F, E, k)
    x_TD, x_AD = torch.randn(T, D, requires_grad=True), torch.randn(T * k, D, requires_grad=True)
    context = RouterContext.of_batch(torch.zeros(1, T, dtype=torch.long))
    passes = {
        name: Pass(layer(), x_AD if name == "dense" else x_TD, context)
        for name, layer in layers.items()
    }
    times = in_turns({name: one.both for name, one in passes.items()}, rounds)
    return {
        name: cell(
            times[name],
            saved=saved_bytes(one.forward, one.layer.parameters()) / MB,
            peak=peak_bytes(one.both) / MB,
        )
        for name, one in passes.items()
    }


class Pass:
    """Forward and backward of one layer. A plain gradient reaches the output, as from a model."""

    def __init__(self, layer: nn.Module, x_TD: Tensor, context: RouterContext) -> None:
        self.layer, self.x_TD, self.context = layer, x_TD, context
        self.grad_TD = torch.randn(x_TD.shape)

    def forward(self) -> Tensor:
        y_TD: Tensor = self.layer(self.x_TD, self.context)[0]
        return y_TD

    def both(self) -> None:
        self.forward().backward(self.grad_TD)
        self.layer.zero_grad()
        self.x_TD.grad = None
