"""The experts themselves: their weights, their outputs, their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from router_lab.metrics.metric import MeanMetric
from router_lab.model.experts import Experts
from router_lab.routing import RouterContext


class WeightSimilarity(MeanMetric):
    """Mean over all pairs of experts of the cosine between their weights, each as one long vector.

    0 for independent experts, 1 for copies of one expert. Two experts that differ only in the order
    of their hidden units are not similar here; `OutputSimilarity` sees that they are. The "average
    neuron/expert similarity" of Csordás et al. 2023 and LibMoE.

    Cost: one pass over the weights and a copy of them; at validation or on request.
    """

    def update(self, experts: Experts) -> None:
        """Adds one layer's feed-forward experts; several layers are averaged."""
        rows_EP = experts.per_expert(lambda p: p.detach().float())
        self.add(mean_pairwise_cosine(rows_EP[:, None])[0])


def mean_pairwise_cosine(vectors_ERD: Tensor) -> Tensor:
    """For each row, the mean over pairs i ≠ j of the cosine of its vectors i and j [R].

    Σ_{i≠j} u_i·u_j = ‖Σ u_i‖² − Σ ‖u_i‖² for u the vectors over their length. A zero vector is
    orthogonal to all; a single expert has no pair: 0.
    """
    unit_ERD = torch.nn.functional.normalize(vectors_ERD, dim=-1)
    E = unit_ERD.shape[0]
    all_R = unit_ERD.sum(dim=0).square().sum(dim=-1)
    self_R = unit_ERD.square().sum(dim=(0, 2))
    return (all_R - self_R) / max(E * (E - 1), 1)


class OutputSimilarity(MeanMetric):
    """Mean over given rows and all pairs of experts of the cosine between their outputs on the row.

    Every expert answers every row, whatever the router says: 1 where they all do the same, so that
    routing between them is idle. One minus it is LibMoE's "expert output diversity".

    Cost: E forward passes over the rows; on request.
    """

    def update(self, experts: Experts, rows_RD: Tensor, context: RouterContext) -> None:
        """Adds rows of one layer.

        Args:
            experts: the layer's feed-forward experts.
            rows_RD: inputs of the layer, one row per token.
            context: of those tokens.
        """
        E, R = experts.n_experts, len(rows_RD)
        out_ERD = experts.each(rows_RD.expand(E, -1, -1), context)
        self.add(mean_pairwise_cosine(out_ERD.float()).sum(), R)


class ExpertGradients(MeanMetric):
    """Norm of the gradient of each expert's weights, averaged over the steps it is given [E].

    To be updated after the backward pass and before the optimiser's step; an expert that no token
    reaches has 0. Cost: one pass over the gradients and a copy of them, under 1% of a step.

    Args:
        n_experts: feed-forward experts of the layer.
    """

    def update(self, experts: Experts) -> None:
        self.add(experts.per_expert(gradient).norm(dim=1))


def gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient; zeros where there is none."""
    grad = parameter.grad
    return torch.zeros_like(parameter) if grad is None else grad.float()
