"""How fast a configuration trains, from a few steps that leave no trace."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from router_lab.data.module import WindowsDataModule
from router_lab.experiment import Experiment
from router_lab.training.fit import task_of, trainer_of


class Stopwatch(Callback):
    """Times optimiser steps after the first one and stops after `steps` or `seconds` of them."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.max_steps = steps
        self.max_seconds = seconds
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.ends):
            if task.device.type != "cpu":
                torch.get_device_module(task.device).synchronize()
            self.ends.append(time.perf_counter())
            done = len(self.ends) > self.max_steps or self.seconds > self.max_seconds
            trainer.should_stop = done and len(self.ends) > 1

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / (len(self.ends) - 1)


def tokens_per_second(experiment: Experiment, steps: int = 4, seconds: float = 1.0) -> float:
    """Training speed of the run, measured on its first windows.

    The first step is a warm-up. `compile` is left out, and n devices are assumed to be n times as
    fast as one. The model's weights change.

    Args:
        steps: optimiser steps to time.
        seconds: to stop after, once one step has been timed.
    """
    torch.set_num_threads(experiment.trainer.threads)
    stopwatch = Stopwatch(steps, seconds)
    trainer = trainer_of(
        experiment,
        [stopwatch],
        devices=1,
        max_steps=-1,
        limit_val_batches=0,
        enable_checkpointing=False,
        logger=False,
    )
    data = WindowsDataModule(
        experiment.corpus,
        experiment.model.seq_len,
        experiment.trainer.batch_size,
        experiment.seed,
    )
    trainer.fit(task_of(experiment, lambda step: 0.0), data)
    return experiment.tokens_per_step / stopwatch.seconds_per_step
