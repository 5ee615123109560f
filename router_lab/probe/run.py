"""Regret, knock-out and similarity of one trained model, as plain numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from router_lab.data.windows import spread_windows
from router_lab.errors import UserError
from router_lab.experiment import Experiment
from router_lab.metrics import OutputSimilarity, WeightSimilarity, mean_over_layers
from router_lab.model.transformer import Block, Transformer
from router_lab.probe.knockout import measure_knockout
from router_lab.probe.regret import measure_regret, n_alternatives
from router_lab.probe.trace import routed_layers, sequences_meet, trace

KNOCKOUT_WINDOWS = 16
SIMILARITY_ROWS = 256


class Job:
    """The probe of one model; `describe` says what it will cost, `run` does it.

    Args:
        experiment: a run with its trained model.
        tokens: how many to probe, one per window while there are enough windows. They are the same
            for every run on the same data, so runs can be compared token by token.

    Raises:
        UserError: the model has no router.
    """

    def __init__(self, experiment: Experiment, tokens: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Transformer = experiment.model.to(self.device).eval()
        self.layers = routed_layers(self.model)
        if not self.layers:
            raise UserError("The model has no routed layer; probe a run with ffn=moe.")
        self.tokens = tokens
        self.step = experiment.trained
        seq_len, corpus = self.model.seq_len, experiment.corpus
        starts = np.resize(spread_windows(corpus, seq_len, tokens), tokens)
        self.windows = windows_at(experiment, starts).to(self.device)
        self.positions = np.random.default_rng(0).integers(0, seq_len, tokens).tolist()
        held_out = windows_at(experiment, spread_windows(corpus, seq_len, KNOCKOUT_WINDOWS))
        self.batches = held_out.to(self.device).split(experiment.trainer.val_batch)
        # Windows that regret computes again: an estimate where k varies.
        self.sequences = tokens * sum(
            n_alternatives(len(ffn.kinds), round(ffn.router.mean_k))
            for _, ffn in self.layers.values()
        )
        self.knockouts = len(self.batches) * sum(len(ffn.kinds) for _, ffn in self.layers.values())

    @property
    def total(self) -> int:
        return self.sequences + self.knockouts

    def describe(self) -> str:
        """What it computes, and about how long it takes."""
        L = len(self.model.blocks)
        windows = self.sequences + self.knockouts * len(self.batches[0])
        # On average half of the layers are above the changed one.
        seconds = windows * (L + 1) / (2 * L) * self._seconds_per_window()
        alone = ", one at a time since sequences compete" * sequences_meet(self.model)
        return (
            f"{self.tokens} tokens × {len(self.layers)} layers, {self.sequences:,} other choices"
            f"{alone}; {self.knockouts:,} knock-outs of {self.batches[0].numel():,} tokens; "
            f"about {max(seconds, 1):.0f} s on {self.device.type}"
        )

    @torch.no_grad()
    def _seconds_per_window(self) -> float:
        batch = self.windows[:1] if sequences_meet(self.model) else self.windows[:16]
        self.model(batch[:1, :-1])
        start = time.perf_counter()
        self.model(batch[:, :-1])
        return (time.perf_counter() - start) / len(batch)

    def run(self, advance: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
        """All numbers: means over the layers, and `layers` with those of each layer."""
        start = time.perf_counter()
        regret = measure_regret(self.model, self.windows, self.positions, advance, self.step)
        knockout = measure_knockout(self.model, self.batches, advance, self.step)
        similarity = similarities(self.model, self.batches[0][:, :-1], self.step)
        layers: dict[str, dict[str, Any]] = {
            name: {
                **regret[name],
                "knockout": knockout[name],
                "knockout_nats": fmean(knockout[name]),
                "knockout_max_nats": max(knockout[name]),
                **similarity[name],
            }
            for name in self.layers
        }
        return {
            **mean_over_layers(layers),
            "tokens": self.tokens,
            "seconds": time.perf_counter() - start,
            "layers": layers,
        }


@torch.no_grad()
def similarities(
    model: Transformer, tokens_BS: Tensor, step: int = 0
) -> dict[str, dict[str, float]]:
    """Weight and output similarity of each routed layer's experts, on the layer's own inputs."""
    base = trace(model, tokens_BS, step)
    by_layer = {}
    for name, (layer, ffn) in routed_layers(model).items():
        block = model.blocks[layer]
        assert isinstance(block, Block)
        rows_TD = block.ffn_norm(block.attend(base.inputs[layer], None)).flatten(0, 1)
        index_R = torch.arange(min(len(rows_TD), SIMILARITY_ROWS), device=rows_TD.device)
        weights, outputs = WeightSimilarity(), OutputSimilarity()
        weights.to(rows_TD.device).update(ffn.experts)
        context = base.routings[name].context.select(index_R)
        outputs.to(rows_TD.device).update(ffn.experts, rows_TD[index_R], context)
        by_layer[name] = {
            "weight_similarity": weights.compute(),
            "output_similarity": outputs.compute(),
        }
    return by_layer


def windows_at(experiment: Experiment, starts: np.ndarray) -> Tensor:
    """[P, S + 1], long."""
    index = starts[:, None] + np.arange(experiment.model.seq_len + 1)
    return torch.from_numpy(np.asarray(experiment.corpus.val.tokens)[index].astype(np.int64))
