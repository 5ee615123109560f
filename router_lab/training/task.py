"""The LightningModule: cross-entropy plus balance losses, and the routers' step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from router_lab.losses import BalanceLoss, layer_terms
from router_lab.model.optim import Optimiser
from router_lab.model.transformer import Transformer
from router_lab.routing import Routing, StepTotals
from router_lab.training.ranks import n_ranks


class StepRecord:
    """The results of one micro-batch, for the callbacks.

    Not a dataclass, which Lightning would copy.

    Attributes:
        batch: the micro-batch.
        nats_BS: cross-entropy of each token, nats.
        loss_nats: its mean.
        routings: the layers' records, detached.
        terms: loss terms by name, averaged over the layers (see `LayerTerms`).
    """

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        nats_BS: Tensor,
        routings: Mapping[str, Routing],
        terms: Mapping[str, Tensor],
    ) -> None:
        self.batch = batch
        self.nats_BS = nats_BS.detach()
        self.loss_nats = self.nats_BS.mean()
        self.routings = {name: routing.detach() for name, routing in routings.items()}
        self.terms = {name: term.detach() for name, term in terms.items()}


class StepDemand:
    """Sums over the micro-batches of a step: demand, tokens and router statistics by layer."""

    def __init__(self) -> None:
        self.demand: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.stats: dict[str, dict[str, Tensor]] = {}

    def add(self, routings: Mapping[str, Routing]) -> None:
        for name, routing in routings.items():
            _add(self.demand, name, routing.demand_E)
            _add(self.tokens, name, torch.tensor(routing.n_tokens, device=routing.demand_E.device))
            for stat, value in routing.stats.items():
                _add(self.stats.setdefault(name, {}), stat, value.detach())

    def over_ranks(self) -> StepDemand:
        """The sums over all ranks; itself if there is only one."""
        if n_ranks() == 1:
            return self
        parts: list[Any] = [None] * n_ranks()
        dist.all_gather_object(parts, move_data_to_device(vars(self), torch.device("cpu")))
        total = StepDemand()
        for part in parts:  # in one order on all ranks; some may lack an inner expert
            for name, demand_E in part["demand"].items():
                _add(total.demand, name, demand_E)
                _add(total.tokens, name, part["tokens"][name])
                for stat, value in part["stats"].get(name, {}).items():
                    _add(total.stats.setdefault(name, {}), stat, value)
        device = next((demand_E.device for demand_E in self.demand.values()), torch.device("cpu"))
        vars(total).update(move_data_to_device(vars(total), device))
        return total

    def density(self) -> float:
        """Demand over (tokens × experts), averaged over the layers with more than one expert (the
        layers of mixture_of_depths have one)."""
        shares = [
            demand_E.sum().item() / max(self.tokens[name].item() * len(demand_E), 1)
            for name, demand_E in self.demand.items()
            if len(demand_E) > 1
        ]
        return sum(shares) / max(len(shares), 1)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors in float32, for gate maths and losses.

    Under bf16-true Lightning makes bfloat16 the default, also for a quotient of two counts.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


class LMTask(LightningModule):
    """Next-token prediction with balance losses.

    Args:
        model: the transformer.
        losses: balance losses by name.
        optimiser: makes the optimiser and its learning-rate schedule.
        progress: maps the number of optimiser steps to the share of the run that is done, 0 to 1.
        seed: of dropout; the seed of routers' noise is in the batches, see RouterContext.
    """

    def __init__(
        self,
        model: Transformer,
        losses: Mapping[str, BalanceLoss],
        optimiser: Optimiser,
        progress: Callable[[int], float],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.balance_losses = dict(losses)
        self.optimiser = optimiser
        self.progress = progress
        self.seed = seed
        self.step_demand = StepDemand()
        self._needs_global = any(loss.global_demand for loss in losses.values())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Only dropout uses torch's generator (routers use RouterContext.uniform). Its seed depends
        # on seed, rank and micro-batch, so arms are paired and a resumed run draws the same.
        seed = crc32(f"{self.seed}/{self.global_rank}/{batch_idx}".encode())
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":  # torch.manual_seed asks all kinds of device, for 0.6 ms
            torch.get_device_module(self.device).manual_seed(seed)

    @float32_by_default()
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        nats_BS, routings = self._predict(batch)
        self.step_demand.add(routings)
        step = self.step_demand.over_ranks() if self._needs_global else self.step_demand
        terms = layer_terms(self.balance_losses, routings, step.demand)
        return {
            "loss": nats_BS.mean() + terms.total,
            "record": StepRecord(batch, nats_BS, routings, terms.terms),
        }

    @float32_by_default()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        nats_BS, routings = self._predict(batch)
        return {"record": StepRecord(batch, nats_BS, routings, {})}

    def _predict(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Routing]]:
        tokens = batch["tokens"]
        out = self.model(tokens[:, :-1], step=self.global_step, noise_B=batch.get("noise"))
        nats = F.cross_entropy(
            out.logits_BSV.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
        )
        return nats.view(tokens.shape[0], -1), out.routings

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # runs the last micro-batch, then the optimiser
        self.end_step()

    def end_step(self) -> None:
        """Gives the routers the demand of the step."""
        step, self.step_demand = self.step_demand.over_ranks(), StepDemand()
        density = step.density()
        for name, router in self.model.routers().items():
            if name in step.demand:
                totals = StepTotals(int(step.tokens[name]), density, step.stats.get(name, {}))
                router.after_step(step.demand[name], totals)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimiser.build(self.model, fused=not self._scaled)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optimiser.lr_share(self.progress(step))
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @property
    def _scaled(self) -> bool:
        """Whether gradients are scaled: a fused optimiser would unscale them after clipping."""
        return self._trainer is not None and self.trainer.precision == "16-mixed"

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Lightning refuses to clip for a fused optimiser in mixed precision.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value.clone()
