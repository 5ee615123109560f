"""In a real training, each router hears of each optimiser step once, with all of its load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from router_lab.commands.main import main
from router_lab.registry import load_plugin

LISTENER = """
from dataclasses import replace

import torch

from router_lab.registry import register
from router_lab.routing import Gate, Router, Routing

heard, forwards = [], []


@register("listener")
class Listener(Router):
    def __init__(self, d_model: int, n_experts: int, k: int = 2) -> None:
        super().__init__(d_model, n_experts, k)
        self.gate = Gate(d_model, n_experts)

    def forward(self, x_TD, context):
        logits_TE = self.gate(x_TD)
        weight_TK, index_TK = logits_TE.softmax(dim=-1).topk(2)
        forwards.append(self.training)
        routing = Routing.from_topk(
            index_TK, weight_TK, logits_TE=logits_TE, probs_TE=logits_TE.softmax(dim=-1),
        )
        return replace(routing, stats={"demand": routing.demand_E, "micro": torch.tensor(1)})

    def after_step(self, demand_E, totals):
        heard.append((id(self), demand_E.clone(), totals))
"""


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_task_counts_once(checkpoint: bool, tmp_path: Path, registry_left_alone: None) -> None:
    path = tmp_path / "listener.py"
    path.write_text(LISTENER)
    steps, accumulate, batch, length, layers, k = 4, 3, 2, 16, 2, 2
    tokens = accumulate * batch * length
    main(
        [
            *["train", f"plugins=[{path}]", "router=listener", f"out={tmp_path}", "model=nano"],
            *[f"model.seq_len={length}", f"model.checkpoint={str(checkpoint).lower()}"],
            *["data=languages", "data.n_tokens=20000", f"budget=tokens:{steps * tokens}"],
            *[f"trainer.accumulate={accumulate}", f"trainer.batch_size={batch}"],
            *["trainer.validations=2", "trainer.val_windows=2"],
        ]
    )
    listener = load_plugin(path)
    times = 2 if checkpoint else 1
    checked = 1  # before training, to see that a plugin's router returns a Routing
    assert sum(listener.forwards) - checked == steps * accumulate * layers * times
    assert len(listener.heard) == steps * layers
    assert len({router for router, _, _ in listener.heard}) == layers
    for _, demand_E, totals in listener.heard:
        assert totals.n_tokens == tokens
        assert int(demand_E.sum()) == tokens * k
        assert int(totals.stats["micro"]) == accumulate
        torch.testing.assert_close(totals.stats["demand"], demand_E)
        assert totals.density == pytest.approx(k / 8)
