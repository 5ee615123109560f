"""The experts during training: their load and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from router_lab.metrics import ExpertGradients, Utilisation
from router_lab.model.ffns.moe import MoE
from router_lab.training.ranks import union_over_ranks
from router_lab.training.task import LMTask, StepRecord


class ExpertWatch(Callback):
    """Utilisation from every training batch, gradient norms every `every` optimiser steps.

    Args:
        n_intervals: equal parts of training, the resolution of when an expert starved.
        every: optimiser steps between two measurements of the gradients.
    """

    def __init__(self, n_intervals: int, every: int) -> None:
        self.n_intervals = n_intervals
        self.every = every
        self._used: dict[str, Utilisation] = {}
        self._gradients: dict[str, ExpertGradients] = {}
        self._norms: dict[str, Tensor] = {}
        self._interval = 0

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        assert isinstance(task, LMTask)
        done = task.progress(
            trainer.global_step
        )  # Lightning counts a step before on_train_batch_end
        self._interval = min(int(done * self.n_intervals + 1e-9), self.n_intervals - 1)

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, *_: Any
    ) -> None:
        record: StepRecord = outputs["record"]
        for name, routing in record.routings.items():
            if name not in self._used:
                used = Utilisation(routing.n_experts, self.n_intervals)
                self._used[name] = used.to(routing.probs_TE.device)
            self._used[name].update(routing, self._interval)

    def on_before_optimizer_step(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every:
            return
        assert isinstance(task, LMTask)
        for name, ffn in task.model.ffns().items():
            if isinstance(ffn, MoE):
                if name not in self._gradients:
                    gradients = ExpertGradients(ffn.experts.n_experts)
                    self._gradients[name] = gradients.to(task.device)
                self._gradients[name].update(ffn.experts)

    def take(self) -> dict[str, dict[str, Any]]:
        """Figures by layer. The gradients are averaged over the steps since the last call, if any.

        `starving`: share of experts with less than a tenth of the fair share in this interval.
        `starved_at`: for each expert the share of training after which it first had so little, or
        None. `gradient_norm`: of each expert; `cv_gradient`: their coefficient of variation.
        """
        self._share_layers()
        figures: dict[str, dict[str, Any]] = {}
        for name, utilisation in self._used.items():
            values = utilisation.compute()
            at = [None if i is None else i / self.n_intervals for i in values["starved_at"]]
            figures[name] = {"starving": values["starving"], "starved_at": at}
        for name, gradients in self._gradients.items():
            if gradients.weight > 0:
                self._norms[name] = torch.tensor(gradients.compute())
                gradients.reset()
        for name, norm_E in self._norms.items():
            spread = norm_E.std(correction=0) / norm_E.mean().clamp_min(1e-12)
            figures.setdefault(name, {}).update(
                gradient_norm=norm_E.tolist(), cv_gradient=float(spread)
            )
        return figures

    def carried_out(self) -> dict[str, Tensor]:
        """By layer, the rows that each expert computed in all of training, over all ranks [E]."""
        self._share_layers()
        rows = {}
        for name, utilisation in self._used.items():
            with utilisation.sync_context():
                rows[name] = utilisation.load_IE.sum(dim=0).cpu()
        return rows

    def _share_layers(self) -> None:
        """Sums over ranks need the same layers on all of them, in the same order."""
        sizes = union_over_ranks({name: used.load_IE.shape[1] for name, used in self._used.items()})
        device = next((used.load_IE.device for used in self._used.values()), None)
        empty = {name: Utilisation(E, self.n_intervals).to(device) for name, E in sizes.items()}
        self._used = {name: self._used.get(name, empty[name]) for name in empty}

    def state_dict(self) -> dict[str, Any]:
        gradients = {name: (g.total.cpu(), g.weight.cpu()) for name, g in self._gradients.items()}
        return {
            "used": {name: used.load_IE.cpu() for name, used in self._used.items()},
            "gradients": gradients,
            "norms": self._norms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms = state["norms"]
        for name, load_IE in state["used"].items():
            self._used[name] = Utilisation(load_IE.shape[1], self.n_intervals)
            self._used[name].load_IE = load_IE
        for name, (norm_E, steps) in state["gradients"].items():
            self._gradients[name] = ExpertGradients(len(norm_E))
            self._gradients[name].total, self._gradients[name].weight = norm_E, steps

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        for metric in (*self._used.values(), *self._gradients.values()):
            metric.to(task.device)
