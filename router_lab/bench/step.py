"""An optimiser step of our transformer with its FFN slot filled by each contestant."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.bench.layer import MB, OURS, our_node
from router_lab.bench.memory import peak_bytes, saved_bytes
from router_lab.bench.peers import peers
from router_lab.bench.record import Cell, cell
from router_lab.bench.sizes import HEADS, VOCABULARY, Size
from router_lab.bench.turns import in_turns
from router_lab.losses import build_losses, layer_terms
from router_lab.model.ffn import DENSE
from router_lab.model.optim import AdamW
from router_lab.model.transformer import ModelOptions, Transformer


class Step:
    """A training step as a plain loop: forward, losses, backward, clipping, AdamW.

    Args:
        model: its routed layers add the losses of their router's paper.
        tokens_BS: the batch, S + 1 tokens in each sequence.
    """

    def __init__(self, model: Transformer, tokens_BS: Tensor) -> None:
        self.model, self.tokens_BS = model, tokens_BS
        ffns = list(model.ffns().values())
        self.losses = build_losses({"default": None}, ffns[0].default_losses if ffns else {})
        self.optimiser = AdamW(lr=1e-5)  # so small that the routing stays as it is
        self.optimizer = self.optimiser.build(model, fused=True)

    def loss(self) -> Tensor:
        out = self.model(self.tokens_BS[:, :-1])
        nats = F.cross_entropy(out.logits_BSV.flatten(0, 1), self.tokens_BS[:, 1:].flatten())
        total: Tensor = nats + layer_terms(self.losses, out.routings, {}).total
        return total

    def __call__(self) -> None:
        self.loss().backward()
        assert self.optimiser.clip is not None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimiser.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def transformer(size: Size, ffn: dict[str, Any], width: int) -> Transformer:
    """Our model with this FFN in its slot."""
    options = ModelOptions(size.D, size.L, n_heads=HEADS, seq_len=size.S)
    return Transformer(VOCABULARY, ffn, options, width)


def with_slot(size: Size, layers: list[nn.Module]) -> Transformer:
    """Our model with other people's layers in its slots."""
    model = transformer(size, dict(DENSE), 1)
    for block, layer in zip(model.blocks, layers, strict=True):
        block.ffn = layer
    return model


def models(size: Size, E: int, k: int) -> dict[str, Transformer]:
    """The contestants; the first is dense, of width k · F."""
    built = {"dense": transformer(size, dict(DENSE), k * size.F)}
    for name, options in OURS.items():
        built[name] = transformer(size, our_node(E, k, **options), size.F)
    for name, layer in peers(size.D, size.F, E, k).items():
        built[name] = with_slot(size, [layer() for _ in range(size.L)])
    return built


def measure_step(size: Size, rounds: int, E: int = 8, k: int = 2) -> dict[str, Cell]:
    """The cells by contestant."""
    torch.manual_seed(0)
    tokens_BS = torch.randint(VOCABULARY, (size.B, size.S + 1))
    steps = {name: Step(model, tokens_BS) for name, model in models(size, E, k).items()}
    times = in_turns(steps, rounds)
    return {
        name: cell(
            times[name],
            saved=saved_bytes(step.loss, step.model.parameters()) / MB,
            peak=peak_bytes(step) / MB,
        )
        for name, step in steps.items()
    }
