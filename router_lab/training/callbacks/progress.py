"""The progress of one run, in the terminal and in status.json."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from router_lab.metrics.records import max_violation
from router_lab.runs.folder import RunDir
from router_lab.runs.text import duration, si
from router_lab.training.callbacks.evaluation import Evaluation
from router_lab.training.task import StepRecord

EVERY = 10  # steps between two updates of the bar
STATUS_SECONDS = 1.0  # between two writes of status.json, outside validations


class TerminalProgress(Callback):
    """A bar with loss, MaxVio, speed and time left; a line for each validation."""

    def __init__(self, evaluation: Evaluation, unit: str = "byte") -> None:
        self.unit = unit
        self.evaluation = evaluation
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            refresh_per_second=2,  # drawing takes time from training
        )
        self.row = self.bar.add_task("", total=1.0, text="")
        self._header = False

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        if not trainer.is_global_zero:
            self.bar.disable = True
            return
        if trainer.global_step:
            clock = self.evaluation.clock
            of = f" of {clock.steps:,}" if clock.steps else ""
            self.console.print(
                f"Going on from step {trainer.global_step:,}{of}, "
                f"{duration(clock.seconds)} of training done."
            )
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if trainer.global_step % EVERY or self.bar.disable:
            return
        record: StepRecord = outputs["record"]
        clock, step = self.evaluation.clock, trainer.global_step
        text = f"loss {record.loss_nats.item():.3f}"
        if record.routings:
            text += f"  MaxVio {train_max_vio(record):.2f}"
        text += f"  {si(self.evaluation.tokens(trainer) / max(clock.seconds, 1e-9))} tokens/s"
        if (left := clock.seconds_left(step)) is not None:
            text += f"  {duration(left)} left"
        self.bar.update(self.row, completed=clock.done(step), text=text)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        evaluation = self.evaluation
        if not self._header:
            self.console.print(
                f"{'step':>8}{'tokens':>9}{'loss':>8}{f'bits/{self.unit}':>11}{'MaxVio':>8}"
                f"{'dropped':>9}{'tokens/s':>10}{'time':>13}",
                style="bold",
            )
            self._header = True
        quality, mean = evaluation.quality, evaluation.mean
        tokens, seconds = evaluation.tokens(trainer), evaluation.clock.seconds
        vio = f"{mean['max_vio']:.2f}" if "max_vio" in mean else "–"
        dropped = f"{mean['dropped']:.1%}" if "dropped" in mean else "–"
        self.console.print(
            f"{trainer.global_step:>8}{si(tokens):>9}{quality['loss']:>8.3f}"
            f"{quality['bits_per_byte']:>11.4f}{vio:>8}{dropped:>9}"
            f"{si(tokens / max(seconds, 1e-9)):>10}{duration(seconds):>13}"
        )

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()


def train_max_vio(record: StepRecord) -> float:
    """MaxVio of the load of one micro-batch, averaged over its routed layers."""
    violations = [max_violation(routing.load_E) for routing in record.routings.values()]
    return torch.stack(violations).mean().item()


class StatusFile(Callback):
    """Writes status.json."""

    def __init__(self, run: RunDir, evaluation: Evaluation, unit: str = "byte") -> None:
        self.run = run
        self.unit = unit
        self.evaluation = evaluation
        self._written_at = 0.0

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if time.monotonic() - self._written_at >= STATUS_SECONDS:
            self.on_validation_end(trainer, task)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        self._written_at = time.monotonic()
        if trainer.is_global_zero:
            self.run.status(
                step=trainer.global_step,
                steps=self.evaluation.clock.steps,
                tokens=self.evaluation.tokens(trainer),
                bits_per_byte=self.evaluation.quality.get("bits_per_byte"),
                unit=self.unit,
                max_vio=self.evaluation.mean.get("max_vio"),
                seconds_left=self.evaluation.clock.seconds_left(trainer.global_step),
            )
