"""Contestants in turn, and their ratios to the first."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

Contestant = Callable[[], object]


class Spread(NamedTuple):
    """Lower quartile, median and upper quartile."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return Spread(values[0], values[0], values[0])
        return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


class Times(NamedTuple):
    """What a contestant took.

    Attributes:
        seconds: of one call, the median over the rounds.
        ratio: to the first contestant, in each round.
    """

    seconds: float
    ratio: Spread


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch, and no garbage collection: it would pause contestants at random."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(before)


def in_turns(
    contestants: Mapping[str, Contestant],
    rounds: int,
    turn: float = 0.03,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, Times]:
    """Calls each contestant in every round and compares it with the first.

    Args:
        rounds: after a warm-up of two calls each.
        turn: seconds of a turn at least, of the first contestant; the others make as many calls.
        clock: CPU seconds of this thread, which do not grow while it waits for a core.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with one_thread():
        for call in (*contestants.values(), *contestants.values()):
            call()
        calls = max(1, round(turn / max(_seconds(contestants[names[0]], 1, clock), 1e-9)))
        for round_ in range(rounds):
            first = round_ % len(names)  # whose caches a turn finds changes with the rounds
            for name in names[first:] + names[:first]:
                seconds[name].append(_seconds(contestants[name], calls, clock))
            gc.collect()
    measure = seconds[names[0]]
    return {
        name: Times(
            statistics.median(taken) / calls,
            Spread.of([a / b for a, b in zip(taken, measure, strict=True)]),
        )
        for name, taken in seconds.items()
    }


def _seconds(call: Contestant, times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start
