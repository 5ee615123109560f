"""What a router does, measured from its records alone.

The everyday set (`RoutingMetrics`) is cheap enough for every step. Everything else is a metric of
its own, taken at validation or on request; each says what it costs.
"""

from router_lab.metrics.everyday import EVERYDAY, RoutingMetrics, mean_over_layers, scalars

__all__ = ["EVERYDAY", "RoutingMetrics", "mean_over_layers", "scalars"]
