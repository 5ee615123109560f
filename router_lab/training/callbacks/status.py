"""status.json while a run trains."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from router_lab.runs.folder import RunDir
from router_lab.training.callbacks.evaluation import Evaluation

INTERVAL = 1.0  # seconds between two writes


class Status(Callback):
    """Writes the progress of the run."""

    def __init__(self, run: RunDir, evaluation: Evaluation) -> None:
        self.run = run
        self.evaluation = evaluation
        self._written_at = 0.0

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if time.monotonic() - self._written_at >= INTERVAL:
            self.on_validation_end(trainer, task)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        self._written_at = time.monotonic()
        if trainer.is_global_zero:
            self.run.status(
                step=trainer.global_step,
                steps=self.evaluation.clock.steps,
                tokens=self.evaluation.tokens(trainer),
                bits_per_byte=self.evaluation.quality.get("bits_per_byte"),
                max_vio=self.evaluation.mean.get("max_vio"),
                seconds_left=self.evaluation.clock.seconds_left(trainer.global_step),
            )
