"""The contract between routers and everything else.

A router looks at the tokens of one layer and returns a `Routing`: the assignments that it asks for,
with what losses and metrics need to know. The record is returned through the forward pass; nobody
hooks a module or reads an attribute left behind.

Tensor names carry their shape:
    T tokens (real ones: padding never reaches a router), D model width, E experts,
    K choices per token, A assignments (token, expert pairs).
"""

from router_lab.routing.assignments import Assignments as Assignments, count as count
from router_lab.routing.record import (
    RouterContext as RouterContext,
    Routing as Routing,
    fair_shares as fair_shares,
)
from router_lab.routing.router import (
    ROUTERS as ROUTERS,
    Gate as Gate,
    Lookahead as Lookahead,
    Router as Router,
    Stage as Stage,
    StepTotals as StepTotals,
    TokenCounts as TokenCounts,
    furthest as furthest,
    refused as refused,
    squared_cv as squared_cv,
)
