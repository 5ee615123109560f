from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from router_lab.model.transformer import Transformer
from router_lab.probe.trace import nats, resume, routed_layers, trace


@torch.no_grad()
def measure_knockout(
    model: Transformer,
    batches: Iterable[Tensor],
    advance: Callable[[int], None] = lambda experts: None,
    step: int = 0,
) -> dict[str, list[float]]:
    """By layer, how much the loss rises without expert e: nats per token, one number per expert.

    The assignments to e are dropped, as a capacity limit would drop them: they contribute nothing,
    the token's other experts keep their weights, and the layers above route again. It is 0 for an
    expert that no token uses, and negative for a harmful one.

    Args:
        model: in evaluation mode.
        batches: windows of tokens [B, S + 1], long.
        advance: called with the number of experts just done.
        step: optimiser steps that the model was trained for.

    Cost: for each layer, expert and batch, one forward pass from that layer up.
    """
    layers = routed_layers(model)
    added = {name: [0.0] * len(ffn.kinds) for name, (_, ffn) in layers.items()}
    tokens = 0
    for windows in batches:
        target_BS = windows[:, 1:]
        whole = trace(model, windows[:, :-1], step)
        base = nats(model, whole.output, target_BS).sum()
        tokens += target_BS.numel()
        for name, (layer, _) in layers.items():
            routing = whole.routings[name]
            for e, load in enumerate(routing.load_E.tolist()):
                if load:
                    others_A = (routing.taken.expert_A != e).nonzero().squeeze(1)
                    without = replace(routing, taken=routing.taken.keep(others_A))
                    x_BSD = resume(model, whole, layer, without)
                    added[name][e] += float(nats(model, x_BSD, target_BS).sum() - base)
                advance(1)
    return {name: [value / max(tokens, 1) for value in values] for name, values in added.items()}
