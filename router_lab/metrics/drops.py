"""Dropped assignments and tokens, and the number of experts per token."""

from __future__ import annotations

from torch import Tensor

from router_lab.metrics.metric import metric


@metric
def dropped(load_E: Tensor, demand_E: Tensor) -> float:
    """1 − Σ load / Σ demand: share of the assignments asked for and not carried out."""
    return float(1 - load_E.sum() / demand_E.sum()) if demand_E.sum() > 0 else 0.0


@metric
def dropped_tokens(tokens_without_expert: Tensor, n_tokens: Tensor) -> float:
    """Share of the tokens left with no expert.

    Either all their assignments were dropped, or the router gave them none (expert choice).
    """
    return float(tokens_without_expert / n_tokens.clamp_min(1))


@metric
def k_used(load_E: Tensor, n_tokens: Tensor) -> float:
    """Mean number of experts per token, after drops."""
    return float(load_E.sum() / n_tokens.clamp_min(1))


@metric
def k_std(load_E: Tensor, squared_k: Tensor, n_tokens: Tensor) -> float:
    """Standard deviation (population) over tokens of the number of experts per token."""
    mean = load_E.sum() / n_tokens.clamp_min(1)
    return float((squared_k / n_tokens.clamp_min(1) - mean.square()).clamp_min(0).sqrt())
