"""Quality and routing over the whole validation set, and the curve of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from router_lab.callbacks.clock import Clock
from router_lab.metrics import RoutingMetrics, mean_over_layers
from router_lab.metrics.quality import BitsPerByte
from router_lab.task import StepRecord


class Evaluation(Callback):
    """Sums up every validation and remembers the curve.

    Args:
        clock: seconds of training.
        tokens_per_step: of an optimiser step, over all ranks.
        flops_per_token: of training.
        token_bytes: bytes of text that each token of the vocabulary stands for; None: one each.

    Attributes:
        quality: loss (nats a token), bits_per_byte; floor_bits and excess_bits (bits a token) where
            the Bayes-optimal loss is known. Of the last validation.
        layers: figures of each routed layer, of the last validation.
        mean: their means over the layers.
        curve: a point for each validation.
        loads: at each validation, the load of every layer's experts.
    """

    def __init__(
        self,
        clock: Clock,
        tokens_per_step: int,
        flops_per_token: float,
        token_bytes: torch.Tensor | None = None,
    ) -> None:
        self.clock = clock
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self._quality = BitsPerByte(token_bytes)
        self._layers: dict[str, RoutingMetrics] = {}
        self.quality: dict[str, float | None] = {}
        self.layers: dict[str, dict[str, Any]] = {}
        self.mean: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.loads: list[dict[str, Any]] = []

    def tokens(self, trainer: Trainer) -> int:
        """Tokens seen so far: the x-axis of every curve."""
        return trainer.global_step * self.tokens_per_step

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._quality = self._quality.to(task.device)
        self._quality.reset()
        for metrics in self._layers.values():
            metrics.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        record: StepRecord = outputs["record"]
        self._quality.update(record.nats_BS, record.batch["tokens"][:, 1:], record.batch.get("floor"))
        for name, routing in record.routings.items():
            if name not in self._layers:
                self._layers[name] = RoutingMetrics(routing.n_experts).to(task.device)
            self._layers[name].update(routing)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        self.quality = self._quality.compute()
        self.layers = {name: metrics.compute() for name, metrics in sorted_layers(self._layers)}
        self.mean = mean_over_layers(self.layers)
        point = {
            "step": trainer.global_step,
            "tokens": self.tokens(trainer),
            "flops": self.tokens(trainer) * self.flops_per_token,
            "seconds": self.clock.seconds,
            **{name: value for name, value in self.quality.items() if value is not None},
            **{name: self.mean[name] for name in ("max_vio", "dropped") if name in self.mean},
        }
        loads = {name: layer["load"] for name, layer in self.layers.items()}
        seen = {"step": point["step"], "tokens": point["tokens"], "loads": loads}
        # A resumed run may validate a step again.
        self.curve = [p for p in self.curve if p["step"] != point["step"]] + [point]
        self.loads = [p for p in self.loads if p["step"] != point["step"]] + [seen]

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": self.curve,
            "loads": self.loads,
            "quality": self.quality,
            "layers": self.layers,
            "mean": self.mean,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def sorted_layers(layers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By number, so that layer10 comes after layer9."""

    def key(name: str) -> list[int]:
        return [int("".join(filter(str.isdigit, part)) or 0) for part in name.split(".")]

    return sorted(layers.items(), key=lambda item: key(item[0]))
