"""What a router does, measured from its records alone.

By cost, for a layer of 64 experts and a batch of 2,048 tokens on one thread, and as a part of the
training step of 8 such layers of width 128:

- `RoutingMetrics`, the everyday set: 0.5 ms, 1.3%; fit for every step.
- `ValidationMetrics`, the everyday set and what looks at every token's set of experts (margin,
  co-activation, specialisation by token id and domain): 1.8 ms, 4%; for validation.
- `Churn`, `Saturation`, `LayerOverlap` compare two choices for the same tokens: 0.2 ms, 0.5%; for a
  probe batch.
- `Utilisation`, the load over training: 0.03 ms, 0.1%.
- `ExpertGradients`, `WeightSimilarity` pass over all the experts' weights: 0.7% and 1.7%, more for
  wider experts; `OutputSimilarity` runs every expert on every row. Now and then, or in a probe
  (`router_lab.probe`), which holds what is dearer still.
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
