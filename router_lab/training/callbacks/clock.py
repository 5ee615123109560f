"""The schedule of a run: seconds of training, the share that is done, validations and the end."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from router_lab.training.ranks import broadcast_from_rank0


class Clock(Callback):
    """Counts the seconds of training, without validation and across resumes.

    Validations are evenly spaced over the run, the last one at its end, so that points of a curve
    are at the same shares of the run for every kind of budget.

    Args:
        steps: length of the run in optimiser steps; None if `seconds` is its length.
        seconds: length of the run if `steps` is None.
        validations: in the whole run.

    Attributes:
        validates: whether a validation follows the present step.
        setup_seconds: from the start of this process to the end of its first batch; None before
            it, and where the system does not say when a process started.
    """

    def __init__(self, steps: int | None, seconds: float, validations: int) -> None:
        self.steps = steps
        self.limit = seconds
        self.validations = validations
        self.validates = False
        self.setup_seconds: float | None = None
        self._before = 0.0
        self._since: float | None = None
        self._first = True
        self._share = 0.0  # of the seconds, after the last step, equal on all ranks

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running

    def done(self, step: int) -> float:
        """Share of the run that is done after `step` steps (after the last one, if its length is in
        seconds)."""
        return min(step / self.steps, 1.0) if self.steps else self._share

    def seconds_left(self, step: int) -> float | None:
        """Estimate after `step` steps; None before the first one."""
        done = self.done(step)
        return self.seconds * (1 - done) / done if done > 0 else None

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        if self.steps is None and self._share >= 1:  # killed before it wrote its result
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first:
            self._first, self.setup_seconds = False, seconds_alive()
        self.validates = False
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            step = trainer.global_step
            due_before = self._due(step - 1)
            if self.steps is None:
                share = min(self.seconds / self.limit, 1.0)
                [self._share] = broadcast_from_rank0([share], task.device)
                trainer.should_stop = self._share >= 1
            self.validates = self._due(step) > due_before
        # Lightning validates after every `val_check_batch` batches: this one, or none.
        batches = trainer.fit_loop.total_batch_idx + 1
        trainer.val_check_batch = batches if self.validates else math.inf

    def _due(self, step: int) -> int:
        """Number of validations due up to this step."""
        return math.floor(self.done(step) * self.validations + 1e-9)

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._before, self._since = self.seconds, None

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        self.on_validation_start(trainer, task)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "timed": self._share}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._before, self._share = state["seconds"], state["timed"]


def seconds_alive() -> float | None:
    """Seconds since this process was started or forked; None where /proc does not say (Linux)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return None
