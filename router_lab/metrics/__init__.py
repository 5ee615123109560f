"""What a router does, measured from its records. A decorated function is a metric: see `metric`.

The metrics by family: `balance`, `drops`, `confidence`, `specialisation`, `agreement`, `experts`,
`quality`. Taking all of them costs 4% of a training step of 8 layers of 64 experts and width 128;
they are taken at validation.
"""

from router_lab.metrics import _torchmetrics  # noqa: F401, I001  (first: see there)
from router_lab.metrics import balance, confidence, drops, specialisation  # noqa: F401  (registers)
from router_lab.metrics.agreement import Agreement as Agreement, agreement as agreement
from router_lab.metrics.balance import Utilisation as Utilisation
from router_lab.metrics.experts import (
    ExpertGradients as ExpertGradients,
    OutputSimilarity as OutputSimilarity,
    WeightSimilarity as WeightSimilarity,
)
from router_lab.metrics.metric import (
    METRICS as METRICS,
    PROBLEMS as PROBLEMS,
    RoutingMetric as RoutingMetric,
    RoutingMetrics as RoutingMetrics,
    load_installed as load_installed,
    mean_over_layers as mean_over_layers,
    metric as metric,
    scalars as scalars,
)
from router_lab.metrics.quality import BitsPerByte as BitsPerByte
from router_lab.metrics.records import (
    SUMS as SUMS,
    RecordView as RecordView,
    record_sum as record_sum,
    selection as selection,
)
