"""Whether two arms had the same budget and were evaluated alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router_lab.report.arms import Arm
from router_lab.runs.text import percent

TOLERANCE = 0.01
"""Arms whose measured cost differs by more than this share are not matched."""


@dataclass(frozen=True)
class Measure:
    """A cost, and its paths in result.json: as measured in training, and as counted beforehand."""

    name: str
    measured: str
    counted: str

    def of(self, arm: Arm) -> float | None:
        """The mean over an arm's seeds, as measured if the results have it."""
        measured = arm.mean(self.measured)
        return arm.mean(self.counted) if measured is None else measured


ACTIVE = Measure("active parameters", "params.active_measured", "params.active")
FLOPS = Measure("FLOPs per token", "flops_per_token_measured", "flops_per_token")
TOTAL = Measure("parameters", "params.total", "params.total")
MATCHES = {"active_params": (ACTIVE, FLOPS), "flops": (FLOPS,), "total_params": (TOTAL,)}
BUDGETS = {
    "tokens": Measure("tokens seen", "train.tokens", "train.tokens"),
    "flops": Measure("training FLOPs", "train.flops_measured", "train.flops"),
    "seconds": Measure("training time", "train.seconds", "train.seconds"),
}


def match_kind(arm: Arm) -> str | None:
    """What the arm's width was solved for: a key of MATCHES, or None if it was given."""
    kind = (arm.first.get("match") or {}).get("kind")
    return str(kind) if kind in MATCHES else None


def budget_kind(arm: Arm) -> str | None:
    """The unit of its budget: a key of BUDGETS, or None."""
    kind = (arm.first.get("budget") or {}).get("kind")
    return str(kind) if kind in BUDGETS else None


def differences_in_budget(arm: Arm, base: Arm, arms: Sequence[Arm]) -> Iterator[tuple[str, str]]:
    """How an arm's budget and evaluation differ from the baseline's: what differs, by how much.

    If the baseline has no capacity limit, evaluation capacity is compared with the first arm that
    has one.
    """
    measures = [*MATCHES[match_kind(base) or "active_params"]]
    if (kind := budget_kind(base)) is not None:
        measures.append(BUDGETS[kind])
    for measure in measures:
        cost, right = measure.of(arm), measure.of(base)
        if cost is not None and right and abs(cost / right - 1.0) > TOLERANCE:
            yield measure.name, percent(cost / right - 1.0, 1, signed=True)
    batch, right = arm.mean("evaluation.batch_size"), base.mean("evaluation.batch_size")
    if batch is not None and right is not None and batch != right:
        yield "evaluation batch", f"{batch:.0f} windows instead of {right:.0f}"
    factor, *others = (one.mean("evaluation.capacity_factor") for one in (arm, base, *arms))
    right = next((other for other in others if other is not None), None)
    if factor is not None and factor != right:
        yield "evaluation capacity factor", f"{factor:g} instead of {right:g}"
