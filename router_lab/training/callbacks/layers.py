"""The figures of every routed layer over a validation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from router_lab.metrics import (
    RoutingMetrics,
    WeightSimilarity,
    agreement,
    mean_over_layers,
    selection,
)
from router_lab.metrics.metric import matrices, without_matrices
from router_lab.model.ffns.moe import MoE
from router_lab.model.transformer import Transformer
from router_lab.runs.layers import in_order, is_inner
from router_lab.training.ranks import union_over_ranks
from router_lab.training.task import StepRecord

LARGEST_TABLE = 2**20
"""Entries of the table token id × expert above which specialisation by token is left out."""


class LayerFigures:
    """Computes the figures from the records of each validation.

    Choices are compared between validations on the first validation batch, which is always the
    same.

    Args:
        vocab_size: V.
        n_domains: D; 0 without labels.

    Attributes:
        layers: figures by layer, of the last validation, in the order of the layers.
        mean: their means over the layers.
        pictures: by layer, matrices that are only drawn.
        loads: for each validation, the load of every layer's experts.
    """

    def __init__(self, vocab_size: int, n_domains: int) -> None:
        self.vocab_size = vocab_size
        self.n_domains = n_domains
        self._metrics: dict[str, RoutingMetrics] = {}
        self._choices: dict[str, Tensor] = {}  # of the first validation batch, by layer
        self._past_choices: list[dict[str, Tensor]] = []
        self.layers: dict[str, dict[str, Any]] = {}
        self.mean: dict[str, float] = {}
        self.pictures: dict[str, dict[str, np.ndarray]] = {}
        self.loads: list[dict[str, list[float]]] = []

    def reset(self) -> None:
        self._choices = {}
        for metrics in self._metrics.values():
            metrics.reset()

    def update(self, record: StepRecord) -> None:
        domain = record.batch.get("domain")
        first = not self._choices
        for name, routing in record.routings.items():
            if name not in self._metrics:
                self._metrics[name] = self._new(routing.n_experts, routing.probs_TE.device)
            labels = None if domain is None else domain.flatten()
            if labels is not None and is_inner(name):  # sees some of the tokens, in its own order
                labels = torch.full_like(routing.context.token_id_T, -1)
            self._metrics[name].update(routing, labels)
            if first and not is_inner(name):
                self._choices[name] = selection(routing).cpu()

    def _new(self, n_experts: int, device: torch.device) -> RoutingMetrics:
        small = self.vocab_size * n_experts <= LARGEST_TABLE
        metrics = RoutingMetrics(n_experts, self.vocab_size if small else 0, self.n_domains)
        return metrics.to(device)

    def drop_last(self) -> None:
        """Forgets the last validation, as the next one is of the same step."""
        self.loads.pop()
        self._past_choices.pop()

    def finish(self, model: Transformer, experts: Mapping[str, Mapping[str, Any]]) -> None:
        """Computes everything at the end of a validation.

        Args:
            experts: by layer, the figures of its experts during training.
        """
        sizes = union_over_ranks({name: m.n_experts for name, m in self._metrics.items()})
        for name, n_experts in sizes.items():
            if name not in self._metrics:  # an inner layer that only another rank has tokens for
                self._metrics[name] = self._new(n_experts, next(model.parameters()).device)
        values = {name: self._metrics[name].compute() for name in in_order(self._metrics)}
        self.layers = {name: without_matrices(layer) for name, layer in values.items()}
        self.pictures = {name: matrices(layer) for name, layer in values.items()}
        self._compare_choices()
        for name, ffn in model.ffns().items():
            if isinstance(ffn, MoE) and name in self.layers:
                similarity = WeightSimilarity()
                similarity.update(ffn.experts)
                self.layers[name]["weight_similarity"] = similarity.compute()
        for name in self.layers.keys() & experts:
            self.layers[name].update(experts[name])
        self.mean = mean_over_layers(self.layers)
        self.loads.append({name: layer["load"] for name, layer in self.layers.items()})

    def _compare_choices(self) -> None:
        """Churn since the last validation, and overlap with the layer below."""
        names = in_order(self._choices)
        for below, name in zip([None, *names], names, strict=False):
            if below is not None and self._choices[below].shape == self._choices[name].shape:
                overlap = agreement([(self._choices[name], self._choices[below])])
                self.layers[name]["layer_overlap"] = overlap
            if self._past_choices and name in self._past_choices[-1]:
                same = agreement([(self._choices[name], self._past_choices[-1][name])])
                self.layers[name]["churn"] = 1 - same
        self._past_choices.append(self._choices)

    def saturation(self) -> list[float]:
        """For each validation, its agreement with the choices of the last one."""
        return [
            agreement([(self._past_choices[-1][name], choices[name]) for name in choices])
            for choices in filter(None, self._past_choices)
        ]

    def state_dict(self) -> dict[str, Any]:
        names = ("layers", "mean", "loads", "_past_choices")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
