"""MaxVio while training is of the load, as in validation: behind a limit the demand differs."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import context_of

from router_lab.capacity import Capacity
from router_lab.metrics import RoutingMetrics
from router_lab.routing import Routing
from router_lab.training.callbacks.clock import Clock
from router_lab.training.callbacks.progress import TerminalProgress
from router_lab.training.callbacks.tensorboard import Board
from router_lab.training.task import StepRecord

E, T = 4, 32


def limited(factor: float) -> Routing:
    """Half of the tokens ask for expert 0, which has room for factor · T / E of them."""
    expert_T = torch.arange(T) % E * (torch.arange(T) % 2)
    probs_TE = torch.full((T, E), 1 / E)
    asked = Routing.from_topk(
        expert_T[:, None],
        torch.ones(T, 1),
        logits_TE=probs_TE,
        probs_TE=probs_TE,
        context=context_of(1, T),
    )
    return Capacity(factor)(asked)


def test_terminal_and_tensorboard_show_what_validation_measures() -> None:
    routings = {"layer0": limited(1.0), "layer1": limited(1.5)}
    metrics = [RoutingMetrics(E, names=["max_vio_batch"]) for _ in routings]
    for metric, routing in zip(metrics, routings.values(), strict=True):
        metric.update(routing)
        assert routing.load_E.max() < routing.demand_E.max()
    values = [metric.compute()["max_vio_batch"] for metric in metrics]
    measured = sum(values) / len(values)

    record = StepRecord({}, torch.ones(1, T), routings, {})
    clock = Clock(steps=20, seconds=0.0, validations=1)
    evaluation: Any = SimpleNamespace(clock=clock, tokens=lambda trainer: 100)
    scalars: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: scalars.update(values))
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    trainer: Any = SimpleNamespace(global_step=10, logger=logger, optimizers=[optimizer])
    task: Any = None
    Board(evaluation, 10, {}, {}, ()).on_train_batch_end(trainer, task, {"record": record})
    assert scalars["routing/train_max_vio"] == pytest.approx(measured)

    terminal = TerminalProgress(evaluation)
    terminal.bar.disable = False
    terminal.on_train_batch_end(trainer, task, {"record": record})
    shown = re.search(r"MaxVio (\S+)", terminal.bar.tasks[0].fields["text"])
    assert shown and float(shown[1]) == pytest.approx(measured, abs=0.005)
