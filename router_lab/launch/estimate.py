"""How long runs take, from the files of earlier ones."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from statistics import median

from router_lab.runs.state import RunState, elsewhere, number


def tokens_per_second(states: Iterable[RunState]) -> float | None:
    """Median training speed of runs of one configuration; None if none has trained here."""
    speeds = [_speed(state) for state in states if not elsewhere(state.status)]
    measured = [speed for speed in speeds if speed]
    return median(measured) if measured else None


def _speed(state: RunState) -> float | None:
    if state.result:
        return number(state.result, "train.tokens_per_second")
    step, steps, tokens, left = (
        number(state.status, key) for key in ("step", "steps", "tokens", "seconds_left")
    )
    if not step or not steps or not tokens or not left:
        return None
    return tokens / step * (steps - step) / left


def makespan(seconds: Iterable[float], places: int) -> float:
    """Seconds until the last run ends if they start, in this order, as places become free."""
    ends = [0.0] * places
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)
