"""Seconds of training, and the end of a run whose budget is seconds."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Clock(Callback):
    """Counts seconds spent on training batches, validation left out, also across a resume.

    Args:
        limit: seconds after which training ends; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running

    def _pause(self) -> None:
        self._before, self._since = self.seconds, None

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._pause()

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if self.limit is not None and self.seconds >= self.limit:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        self._pause()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._before = state["seconds"]
