"""Optimisers: which parameters decay, and the schedule of the learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from router_lab.check import ABOVE_0, BELOW_1, NOT_NEGATIVE, SHARE, Count, Rule
from router_lab.model.transformer import Head
from router_lab.registry import Registry, register
from router_lab.routing import Gate, Router

BETAS = Rule(
    "two numbers, 0 or more and below 1",
    lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(map(BELOW_1.holds, v)),
)


@dataclass(frozen=True)
class Optimiser(ABC):
    """Base of every optimiser: a dataclass whose fields are its options.

    Args:
        lr: peak learning rate.
        warmup: share of the run in which the rate rises linearly to its peak.
        min_lr: rate at the end of the cosine, as a share of the peak.
        clip: largest norm of the whole gradient; null: never clipped.
    """

    lr: Annotated[float, ABOVE_0]
    warmup: Annotated[float, SHARE] = 0.05
    min_lr: Annotated[float, SHARE] = 0.1
    clip: Annotated[float | None, ABOVE_0] = 1.0

    @abstractmethod
    def build(self, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """The optimiser of the model's parameters, at the peak rate.

        Args:
            fused: whether torch's fused step may be used.
        """

    def lr_share(self, progress: float) -> float:
        """The rate as a share of its peak: linear warm-up, then a cosine down to min_lr.

        Args:
            progress: share of the run that is done.
        """
        if progress < self.warmup:
            return min(progress / self.warmup + 1e-3, 1.0)
        decayed = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
        cosine = 0.5 * (1 + math.cos(math.pi * min(decayed, 1.0)))
        return self.min_lr + (1 - self.min_lr) * cosine


OPTIMISERS: Registry[Optimiser] = Registry(
    "optim", Optimiser, "router_lab.model.optim", "optimisers"
)


@register("adamw")
@dataclass(frozen=True)
class AdamW(Optimiser):
    """AdamW (arXiv:1711.05101); weights that are matrices decay, gains and biases do not.

    Args:
        weight_decay: share of a weight that is taken off per step, times the learning rate.
        betas: decay of the running means of the gradient and of its square.
        embedding_lr: peak rate of the embedding; null: lr.
        head_lr: peak rate of an untied head; null: lr.
    """

    lr: Annotated[float, ABOVE_0] = 3e-3
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.1
    betas: Annotated[tuple[float, float], BETAS] = (0.9, 0.95)
    embedding_lr: Annotated[float | None, ABOVE_0] = None
    head_lr: Annotated[float | None, ABOVE_0] = None

    def build(self, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.groups(model), lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=fused
        )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameters by role, each group with its rate and decay."""
        rates = {"embedding": self.embedding_lr, "head": self.head_lr}
        return [
            {
                "role": role,
                "params": parameters,
                "lr": rates.get(role) or self.lr,
                "weight_decay": 0.0 if role == "vectors" else self.weight_decay,
            }
            for role, parameters in by_role(model).items()
        ]


@register("muon")
@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for the hidden matrices, AdamW for everything else.

    Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) moves a matrix by its momentum
    with all singular values set to about 1, times lr · sqrt(max(1, d_out / d_in)); so do
    torch.optim.Muon and the step here with iterations=5, every=1. Parameters go by this rule:

    - Muon: matrices, the weights of attention and FFNs with two or more dimensions. Stacked experts
      are orthogonalised expert by expert.
    - AdamW: the embedding, the head, gates (every `Router`, every `Gate`, and what a module names
      in `gates`) and vectors (gains, biases, scalars).

    Args:
        lr: peak rate of the hidden matrices.
        weight_decay: share of a hidden matrix that is taken off per step, times lr. Nothing else
            decays.
        momentum: decay of the running mean of the gradient; Nesterov's form.
        iterations: Newton-Schulz iterations. 5: those of Jordan and torch. 3, 4: polynomials of
            least error from a nearer bound on the singular values.
        every: each matrix moves at every n-th step, by n times the rate; the matrices take turns.
        adamw_lr: peak rate of gates and vectors.
        embedding_lr: peak rate of the embedding; null: adamw_lr.
        head_lr: peak rate of an untied head; null: adamw_lr.
        betas: of AdamW.
    """

    lr: Annotated[float, ABOVE_0] = 0.03
    momentum: Annotated[float, BELOW_1] = 0.9
    iterations: Literal[3, 4, 5] = 4
    every: Count = 4
    adamw_lr: Annotated[float, ABOVE_0] = 3e-3

    def build(self, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        from router_lab.model.muon import MuonAdamW

        return MuonAdamW(
            self.groups(model),
            lr=self.adamw_lr,
            betas=(self.betas[0], self.betas[1]),
            weight_decay=0.0,
            fused=fused,
        )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        muon = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "muon": {
                "momentum": self.momentum,
                "iterations": self.iterations,
                "every": self.every,
                "turn": 0,
            },
        }
        rates = {"embedding": self.embedding_lr, "head": self.head_lr}
        return [
            {"role": role, "params": parameters}
            | (muon if role == "matrices" else {"lr": rates.get(role) or self.adamw_lr})
            for role, parameters in by_role(model).items()
        ]


def by_role(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by role, roles without any left out; the rule is in `Muon`."""
    roles: dict[Tensor, str] = {}
    for module in model.modules():
        named = map(module.get_parameter, getattr(module, "gates", ()))
        roles |= dict.fromkeys(named, "gates")
        if isinstance(module, Router | Gate):
            roles |= dict.fromkeys(module.parameters(), "gates")
        if isinstance(module, nn.Embedding):
            roles[module.weight] = "embedding"
        if isinstance(module, Head):
            roles[module.weight] = "head"
    groups: dict[str, list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            role = "vectors" if p.dim() < 2 else roles.get(p, "matrices")
            groups.setdefault(role, []).append(p)
    return groups
