"""What a person sees in the terminal while one run trains."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from router_lab.callbacks.evaluation import Evaluation
from router_lab.task import LMTask, StepRecord

EVERY = 10  # steps between two updates of the bar


class TerminalProgress(Callback):
    """A bar with loss, MaxVio, tokens/s and time left; a line for each validation."""

    def __init__(self, evaluation: Evaluation, steps: int | None) -> None:
        self.evaluation = evaluation
        self.steps = steps
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.row = self.bar.add_task("training", total=1.0, text="")
        self._header = False

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if trainer.global_step % EVERY or self.bar.disable:
            return
        assert isinstance(task, LMTask)
        record: StepRecord = outputs["record"]
        seconds = self.evaluation.clock.seconds
        done = task.progress(trainer.global_step)
        speed = self.evaluation.tokens(trainer) / max(seconds, 1e-9)
        left = seconds * (1 - done) / done if done else 0.0
        text = f"loss {record.loss_nats.item():.3f}"
        if record.routings:
            worst = [
                r.demand_E.max() / r.demand_E.float().mean() - 1 for r in record.routings.values()
            ]
            text += f"  MaxVio {sum(worst).item() / len(worst):.2f}"  # type: ignore[union-attr]
        text += f"  {speed / 1000:.1f}k tokens/s  {clock_time(left)} left"
        self.bar.update(self.row, completed=done, text=text)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        evaluation = self.evaluation
        if not self._header:
            self.console.print(
                f"{'step':>8}{'tokens':>10}{'loss':>8}{'bits/byte':>11}{'MaxVio':>8}"
                f"{'dropped':>9}{'tokens/s':>10}{'time':>8}",
                style="bold",
            )
            self._header = True
        quality, mean = evaluation.quality, evaluation.mean
        tokens, seconds = evaluation.tokens(trainer), evaluation.clock.seconds
        vio = f"{mean['max_vio']:.2f}" if "max_vio" in mean else "–"
        dropped = f"{mean['dropped']:.1%}" if "dropped" in mean else "–"
        self.console.print(
            f"{trainer.global_step:>8}{short(tokens):>10}{quality['loss']:>8.3f}"
            f"{quality['bits_per_byte']:>11.4f}{vio:>8}{dropped:>9}"
            f"{short(tokens / max(seconds, 1e-9)):>10}{clock_time(seconds):>8}"
        )

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: Trainer, task: LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


def clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short(number: float) -> str:
    """12345 → 12.3k."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return (
                f"{number / limit:.2f}{unit}"
                if number < 10 * limit
                else f"{number / limit:.1f}{unit}"
            )
    return f"{number:.0f}"
