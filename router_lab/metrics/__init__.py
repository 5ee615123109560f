"""What a router does, measured from its records alone.

By cost, a layer of 64 experts on 2,048 tokens (a batch of validation), one thread:

- `RoutingMetrics`, the everyday set: 0.5 ms, about 1% of a training step; for every step.
- `ValidationMetrics`, the everyday set and what looks at every token's set of experts (margin,
  co-activation, specialisation by token id and domain): for validation.
- `Churn`, `Saturation`, `LayerOverlap` compare two choices for the same tokens: for a probe batch.
- `Utilisation`, the load over training: as cheap as counting.
- `WeightSimilarity`, `OutputSimilarity`, `ExpertGradients` look at the experts themselves and pass
  over all their weights: now and then. `router_lab.probe` holds what is dearer still.
"""

from router_lab.metrics.base import selection
from router_lab.metrics.churn import Churn
from router_lab.metrics.domain import DomainSpecialisation
from router_lab.metrics.everyday import EVERYDAY, RoutingMetrics, mean_over_layers, scalars
from router_lab.metrics.expert_gradients import ExpertGradients
from router_lab.metrics.layer_overlap import LayerOverlap
from router_lab.metrics.output_similarity import OutputSimilarity
from router_lab.metrics.saturation import Saturation
from router_lab.metrics.utilisation import Utilisation
from router_lab.metrics.validation import ValidationMetrics
from router_lab.metrics.vocab import VocabSpecialisation
from router_lab.metrics.weight_similarity import WeightSimilarity

__all__ = [
    "EVERYDAY",
    "Churn",
    "DomainSpecialisation",
    "ExpertGradients",
    "LayerOverlap",
    "OutputSimilarity",
    "RoutingMetrics",
    "Saturation",
    "Utilisation",
    "ValidationMetrics",
    "VocabSpecialisation",
    "WeightSimilarity",
    "mean_over_layers",
    "scalars",
    "selection",
]
