"""The contract between routers and everything else.

A router looks at the tokens of one layer and returns a `Routing`: the assignments that it asks for,
with what losses and metrics need to know. The record is returned through the forward pass; nobody
hooks a module or reads an attribute left behind.

Tensor names carry their shape:
    T tokens (real ones: padding never reaches a router), D model width, E experts,
    K choices per token, A assignments (token, expert pairs).
"""

from router_lab.routing.assignments import Assignments, count
from router_lab.routing.record import RouterContext, Routing, fair_shares
from router_lab.routing.router import (
    ROUTERS,
    Gate,
    Lookahead,
    Router,
    Stage,
    StepTotals,
    TokenCounts,
    furthest,
    refused,
    squared_cv,
)

__all__ = [
    "ROUTERS",
    "Assignments",
    "Gate",
    "Lookahead",
    "Router",
    "RouterContext",
    "Routing",
    "Stage",
    "StepTotals",
    "TokenCounts",
    "count",
    "fair_shares",
    "furthest",
    "refused",
    "squared_cv",
]
