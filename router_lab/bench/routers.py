"""What each router of the zoo costs a training step, with the metrics of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from router_lab.bench.layer import our_node
from router_lab.bench.record import Cell, cell
from router_lab.bench.sizes import VOCABULARY, Size
from router_lab.bench.step import transformer
from router_lab.bench.turns import in_turns
from router_lab.losses import build_losses
from router_lab.model.optim import AdamW
from router_lab.routing import ROUTERS
from router_lab.training.callbacks.watch import ExpertWatch
from router_lab.training.task import LMTask

MEASURE = "softmax_topk"


class TaskStep:
    """A step of the LightningModule without a Trainer around it, and the watch on its experts."""

    def __init__(self, size: Size, E: int, router: str, tokens_BS: Tensor) -> None:
        node = our_node(E, 2) | {"router": {"name": router, **options(router)}}
        model = transformer(size, node, size.F)
        losses = build_losses({"default": None}, next(iter(model.ffns().values())).default_losses)
        self.task = LMTask(model, losses, AdamW(lr=1e-5), lambda step: 0.0)
        self.watch = ExpertWatch(n_intervals=1, every=10)
        self.optimizer = self.task.optimiser.build(model, fused=True)
        self.batch = {"tokens": tokens_BS, "noise": torch.arange(len(tokens_BS))}
        self.last: dict[str, Any] = {}

    def __call__(self) -> None:
        self.last = self.task.training_step(self.batch, 0)
        self.last["loss"].backward()
        self.task.configure_gradient_clipping(self.optimizer, self.task.optimiser.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.end_step()
        self.watch.on_train_batch_end(None, self.task, self.last)  # type: ignore[arg-type]

    def experts_per_token(self) -> float:
        routings = self.last["record"].routings.values()
        assignments: int = sum(len(r.taken) for r in routings)
        tokens: int = sum(r.n_tokens for r in routings)
        return assignments / tokens


def options(router: str) -> dict[str, Any]:
    """Two experts per token where the router has the choice."""
    if router == "two_level":
        return {"k": 2, "norm_topk_prob": False}
    has_k = any(option.name == "k" for option in ROUTERS.options(router))
    return {"k": 2} if has_k else {}


def measure_routers(size: Size, rounds: int, E: int = 8) -> dict[str, Cell]:
    """The cells by router, softmax_topk first."""
    torch.manual_seed(0)
    tokens_BS = torch.randint(VOCABULARY, (size.B, size.S + 1))
    names = [MEASURE, *(name for name in ROUTERS.names() if name != MEASURE)]
    steps = {name: TaskStep(size, E, name, tokens_BS) for name in names}
    times = in_turns(steps, rounds)
    return {
        name: cell(times[name], experts=step.experts_per_token()) for name, step in steps.items()
    }
