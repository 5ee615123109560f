"""Quality and routing over the whole validation set, and the curve of a run."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from router_lab.experiment import Experiment
from router_lab.metrics import BitsPerByte
from router_lab.runs.schema import Point, Quality
from router_lab.training.callbacks.clock import Clock
from router_lab.training.callbacks.layers import LayerFigures
from router_lab.training.callbacks.watch import ExpertWatch
from router_lab.training.task import LMTask, StepRecord

IN_CURVE = ("max_vio", "dropped", "effective_experts", "churn", "domain_nmi")
"""Means over the layers that a point of the curve has."""


class Evaluation(Callback):
    """Evaluates every validation and keeps the curve.

    The figures are ready in `on_validation_end`, whatever the order of the callbacks.

    Attributes:
        watch: the experts during training.
        figures: the routed layers' figures of the last validation.
        quality: loss (nats per token), bits_per_byte; floor_bits and excess_bits (bits per token)
            if the Bayes-optimal loss is known. From the last validation.
        curve: one point per validation.
    """

    def __init__(self, experiment: Experiment, clock: Clock) -> None:
        corpus, options = experiment.corpus, experiment.trainer
        self.clock = clock
        self.watch = ExpertWatch(options.validations, options.log_every)
        self.figures = LayerFigures(corpus.vocab_size, len(corpus.domains))
        self.tokens_per_step = experiment.tokens_per_step
        self.flops_per_token = experiment.cost.flops_per_token
        table = corpus.token_bytes
        self._bits = BitsPerByte(None if table is None else torch.as_tensor(table))
        self.quality: Quality = {}  # type: ignore[typeddict-item] # before the first validation
        self.curve: list[Point] = []

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        return self.figures.layers

    @property
    def mean(self) -> dict[str, float]:
        return self.figures.mean

    def tokens(self, trainer: Trainer) -> int:
        """Tokens trained on so far: the x-axis of every curve."""
        return trainer.global_step * self.tokens_per_step

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._bits = self._bits.to(task.device)
        self._bits.reset()
        self.figures.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        record: StepRecord = outputs["record"]
        target_BS = record.batch["tokens"][:, 1:]
        self._bits.update(record.nats_BS, target_BS, record.batch.get("floor"))
        self.figures.update(record)

    def on_validation_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        assert isinstance(task, LMTask)
        self.quality = self._bits.compute()
        if self.curve and self.curve[-1]["step"] == trainer.global_step:
            self.curve.pop()  # a resumed run may validate a step again
            self.figures.drop_last()
        self.figures.finish(task.model, self.watch.take())
        tokens = self.tokens(trainer)
        point: Any = {
            "step": trainer.global_step,
            "tokens": tokens,
            "flops": tokens * self.flops_per_token,
            "seconds": self.clock.seconds,
            **{name: value for name, value in self.quality.items() if value is not None},
            **{name: self.mean[name] for name in IN_CURVE if name in self.mean},
        }
        self.curve.append(point)

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "quality": self.quality, "figures": self.figures.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.quality = state["curve"], state["quality"]
        self.figures.load_state_dict(state["figures"])
