"""Scalars and pictures for TensorBoard, against tokens seen.

Tags: loss/ (training), quality/ (validation), routing/ (means over the layers), layers/ (spread over
the layers), cost/, pictures/. Their number does not grow with layers or experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from router_lab.callbacks.evaluation import Evaluation
from router_lab.task import StepRecord

SPREAD = {"min": 0.0, "median": 0.5, "max": 1.0}


class Board(Callback):
    """Writes training scalars every `log_every` steps and everything else at each validation."""

    def __init__(self, evaluation: Evaluation, log_every: int) -> None:
        self.evaluation = evaluation
        self.log_every = log_every
        self._logged = -1

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
            loads = [routing.demand_E for routing in record.routings.values()]
            vio = torch.stack([load.max() / load.float().mean().clamp_min(1e-9) - 1 for load in loads])
            scalars["routing/train_max_vio"] = vio.mean().item()
        tokens, seconds = self.evaluation.tokens(trainer), self.evaluation.clock.seconds
        scalars["cost/tokens_per_second"] = tokens / max(seconds, 1e-9)
        self._log(trainer, scalars)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.logger is None:
            return
        evaluation = self.evaluation
        tokens = evaluation.tokens(trainer)
        scalars = {f"quality/{k}": v for k, v in evaluation.quality.items() if v is not None}
        scalars |= {f"routing/{name}": value for name, value in evaluation.mean.items()}
        for name in evaluation.mean:
            values = [layer[name] for layer in evaluation.layers.values() if name in layer]
            for word, share in SPREAD.items():
                scalars[f"layers/{name}/{word}"] = float(np.quantile(values, share))
        scalars["cost/seconds"] = evaluation.clock.seconds
        scalars["cost/flops"] = tokens * evaluation.flops_per_token
        self._log(trainer, scalars)
        if evaluation.layers:
            assert isinstance(trainer.logger, TensorBoardLogger)
            picture = load_picture(evaluation.layers)
            trainer.logger.experiment.add_image("pictures/load", picture, tokens, dataformats="HWC")

    def _log(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics(dict(scalars), step=self.evaluation.tokens(trainer))


def load_picture(layers: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
    """Expert load by layer [height, width, 3]: white at the ideal load, red above, blue below."""
    n_experts = max(len(layer["load"]) for layer in layers.values())
    cell = max(4, min(24, 768 // n_experts))
    rows = []
    for layer in layers.values():
        share = np.full(n_experts, np.nan)
        share[: len(layer["load"])] = np.array(layer["load"]) * len(layer["load"])
        rows.append(share)
    ratio = np.array(rows)
    strength = np.clip(np.where(ratio > 1, (ratio - 1) / 2, 1 - ratio), 0, 1)
    over, under = np.array([178, 24, 43]), np.array([33, 102, 172])
    colour = np.where((ratio > 1)[..., None], over, under)
    pixels = 255 + strength[..., None] * (colour - 255)
    pixels[np.isnan(ratio)] = 128
    image = np.kron(pixels, np.ones((cell, cell, 1))).astype(np.uint8)
    image[::cell] = image[:, ::cell] = 220
    return image
