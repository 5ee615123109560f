"""status.json while a run trains, and a tidy stop."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from router_lab.callbacks.evaluation import Evaluation
from router_lab.grid import RunDir
from router_lab.task import LMTask

INTERVAL = 1.0  # seconds between two writes


class Status(Callback):
    """Says how far the run is, and ends it with a checkpoint when it was asked to stop."""

    def __init__(self, run: RunDir, evaluation: Evaluation, steps: int | None) -> None:
        self.run = run
        self.evaluation = evaluation
        self.steps = steps
        self._written = 0.0

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if self.run.stop.signal:
            trainer.save_checkpoint(self.run.folder / "checkpoints" / "last.ckpt")
            self.run.stop.check()
        if trainer.is_global_zero and time.monotonic() - self._written >= INTERVAL:
            self._written = time.monotonic()
            self.write(trainer, task)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(trainer, task)

    def write(self, trainer: Trainer, task: LightningModule) -> None:
        assert isinstance(task, LMTask)
        evaluation = self.evaluation
        seconds, done = evaluation.clock.seconds, task.progress(trainer.global_step)
        self.run.status(
            step=trainer.global_step,
            steps=self.steps,
            tokens=evaluation.tokens(trainer),
            bits_per_byte=evaluation.quality.get("bits_per_byte"),
            max_vio=evaluation.mean.get("max_vio"),
            seconds_left=seconds * (1 - done) / done if done > 0 else None,
        )
