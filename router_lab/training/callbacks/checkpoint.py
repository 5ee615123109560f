"""Checkpoints, and a clean stop on request or divergence."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from router_lab.errors import UserError
from router_lab.runs.folder import RunDir
from router_lab.training.callbacks.clock import Clock
from router_lab.training.ranks import broadcast_from_rank0

INTERVAL = 300.0  # seconds between two checkpoints, at most
LOOK = 10  # steps between two looks at the loss on a GPU, each of which waits for the GPU


class SaveAndStop(Checkpoint):
    """Saves at every validation, every five minutes, and when the run was asked to stop.

    A step that is validated is saved after its validation, so that the curve of a resumed run has
    no gap. Lightning runs callbacks of class `Checkpoint` last, so they save what the others know
    of the same step.

    Raises:
        Interrupted: the run was asked to stop and is saved.
        UserError: the loss is not finite.
    """

    def __init__(self, run: RunDir, clock: Clock) -> None:
        self.run = run
        self.clock = clock
        self.path = run.folder / "checkpoints" / "last.ckpt"
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a checkpoint would lack the gradients accumulated so far
        step, validates = trainer.global_step, self.clock.validates
        if task.device.type == "cpu" or step % LOOK == 0 or validates:
            loss = outputs["record"].loss_nats.item()
            if not math.isfinite(loss):
                raise UserError(
                    f"The loss is not finite at step {step} ({loss}): training diverged; "
                    f"a smaller optim.lr or optim.clip, or a longer optim.warmup, may help."
                )
        if not validates:
            self._save_or_stop(trainer, task, due=time.monotonic() - self._saved_at > INTERVAL)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_or_stop(trainer, task, due=True)

    def _save_or_stop(self, trainer: Trainer, task: LightningModule, due: bool) -> None:
        stop = self.run.stop
        save, end = broadcast_from_rank0([due, bool(stop.signal)], task.device)
        if not (save or end):
            return
        draft = self.path.with_name("draft.ckpt")
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            draft.replace(self.path)
        self._saved_at = time.monotonic()
        if end:
            stop.signal = stop.signal or "SIGTERM"  # another rank may have received it first
            stop.check()
