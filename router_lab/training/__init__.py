"""One run: trained, evaluated, written down."""

import router_lab.metrics  # noqa: F401  (before Lightning: it imports torchmetrics without extras)
