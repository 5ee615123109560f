"""Scalars and pictures for TensorBoard, against tokens seen.

Tags: loss/ (training), quality/ (validation), routing/ (means over the layers), layers/ (spread
over the layers), cost/, and pictures. Their number does not grow with layers or experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from router_lab.board.overview import config_text, summaries
from router_lab.board.pictures import Heatmap, draw
from router_lab.runs.text import si
from router_lab.training.callbacks.evaluation import Evaluation
from router_lab.training.callbacks.progress import train_max_vio
from router_lab.training.task import StepRecord

SPREAD = {"min": 0.0, "median": 0.5, "max": 1.0}
MOST_PANELS = 8
"""Layers in one picture; of a deeper model, evenly spread ones."""


class Board(Callback):
    """Writes training scalars every `log_every` steps and everything else at each validation.

    Args:
        row: the run's row in the table of runs (see board.overview.hparams).
        config, overrides: for the text panel.
        domains: names of the domains in the data.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        log_every: int,
        row: Mapping[str, str | float],
        config: Mapping[str, Any],
        overrides: tuple[str, ...],
        domains: Sequence[str] = (),
    ) -> None:
        self.evaluation = evaluation
        self.log_every = log_every
        _, self.start, self.end = summaries(row)
        self.text = config_text(config, overrides)
        self.domains = domains
        self._logged = -1

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is not None and trainer.global_step == 0:
            writer.file_writer.add_summary(self.start)
            writer.add_text("configuration", self.text, 0)

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is not None:
            writer.file_writer.add_summary(self.end)

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        step = trainer.global_step
        if step % self.log_every or step == self._logged:
            return
        self._logged = step
        record: StepRecord = outputs["record"]
        scalars = {"loss/train": record.loss_nats.item()}
        scalars |= {f"loss/{name}": term.item() for name, term in record.terms.items()}
        scalars["loss/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if record.routings:
            scalars["routing/train_max_vio"] = train_max_vio(record)
        tokens, seconds = self.evaluation.tokens(trainer), self.evaluation.clock.seconds
        scalars["cost/tokens_per_second"] = tokens / max(seconds, 1e-9)
        self._log(trainer, scalars)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        evaluation = self.evaluation
        tokens = evaluation.tokens(trainer)
        quality = evaluation.quality.items()
        scalars = {f"quality/{name}": value for name, value in quality if isinstance(value, float)}
        scalars |= {f"routing/{name}": value for name, value in evaluation.mean.items()}
        for name in evaluation.mean:
            values = [layer[name] for layer in evaluation.layers.values() if name in layer]
            for word, share in SPREAD.items():
                scalars[f"layers/{name}/{word}"] = float(np.quantile(values, share))
        scalars["cost/seconds"] = evaluation.clock.seconds
        scalars["cost/flops"] = tokens * evaluation.flops_per_token
        self._log(trainer, scalars)
        writer = _writer(trainer)
        if writer is not None and evaluation.layers:
            for tag, picture in pictures(evaluation, self.domains).items():
                writer.add_image(f"pictures/{tag}", picture, tokens, dataformats="HWC")

    def _log(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics(dict(scalars), step=self.evaluation.tokens(trainer))


def _writer(trainer: Trainer) -> Any:
    logger = trainer.logger
    if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
        return logger.experiment
    return None


def pictures(evaluation: Evaluation, domains: Sequence[str]) -> dict[str, np.ndarray]:
    """Load by layer now and over training, experts by domain, experts chosen together.

    The names are numbered, as TensorBoard sorts by name.
    """
    figures = evaluation.figures
    layers = figures.layers
    n_experts = max(len(layer["load"]) for layer in layers.values())
    now = np.full((len(layers), n_experts), np.nan)
    for row, layer in zip(now, layers.values(), strict=True):
        row[: len(layer["load"])] = np.array(layer["load"]) * len(layer["load"])
    title = "load of each expert, by layer"
    panels = {"1_load": [Heatmap(now, list(layers), numbers(n_experts), title)]}
    for name in list(layers)[:: -(-len(layers) // MOST_PANELS)]:
        points = [
            (si(point["tokens"]), loads[name])
            for point, loads in zip(evaluation.curve, figures.loads, strict=True)
            if name in loads
        ]
        times, loads_IE = zip(*points, strict=True)
        load_EI = np.array(loads_IE).T
        E = len(load_EI)
        title = f"{name}: load of each expert, over tokens"
        over_time = Heatmap(load_EI * E, numbers(E), times, title)
        panels.setdefault("2_load_over_time", []).append(over_time)
        matrices = figures.pictures.get(name, {})
        if "share_DE" in matrices:
            ratio_DE = matrices["share_DE"] * E / max(layers[name]["k_used"], 1e-9)
            title = f"{name}: domain (row) by expert"
            by_domain = Heatmap(ratio_DE, list(domains), numbers(E), title)
            panels.setdefault("3_domains", []).append(by_domain)
        if "coactivation_EE" in matrices:
            both_EE = matrices["coactivation_EE"].copy()
            np.fill_diagonal(both_EE, np.nan)
            title = f"{name}: column chosen with row"
            highest = float(np.nanmax(both_EE, initial=1e-9))
            ends = ("never", f"{highest:.0%} of the time")
            together = Heatmap(
                both_EE, numbers(E), numbers(E), title, 0, highest, "sequential", ends
            )
            panels.setdefault("4_chosen_together", []).append(together)
    return {name: draw(heatmaps) for name, heatmaps in panels.items()}


def numbers(n: int) -> list[str]:
    return [str(i) for i in range(n)]
