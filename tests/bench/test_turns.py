"""Ratios of contestants that take turns, on a clock of their own."""

from __future__ import annotations

import gc

import pytest
import torch

from router_lab.bench.turns import Spread, in_turns, one_thread


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_round_is_compared_with_the_first_contestant_of_that_round() -> None:
    clock = Clock()
    calls = {"dense": 0, "other": 0}

    def dense() -> None:
        calls["dense"] += 1
        clock.now += 0.01 * calls["dense"]  # the machine slows down from round to round

    def other() -> None:
        calls["other"] += 1
        clock.now += 0.02 * calls["other"]

    times = in_turns({"dense": dense, "other": other}, rounds=5, turn=0.0, clock=clock)
    # Two calls warm up, and the measure has one more, from which the length of a turn follows.
    assert calls == {"dense": 8, "other": 7}
    ratios = sorted(0.02 * (3 + i) / (0.01 * (4 + i)) for i in range(5))
    assert times["dense"].ratio == (1, 1, 1)
    assert times["other"].ratio == pytest.approx((ratios[1], ratios[2], ratios[3]))
    assert times["other"].seconds == pytest.approx(0.02 * 5)


def test_a_turn_lasts_as_long_as_asked() -> None:
    clock = Clock()
    calls = {"dense": 0, "other": 0}

    def contestant(name: str, seconds: float) -> None:
        calls[name] += 1
        clock.now += seconds

    times = in_turns(
        {"dense": lambda: contestant("dense", 0.01), "other": lambda: contestant("other", 0.03)},
        rounds=2,
        turn=0.05,
        clock=clock,
    )
    assert calls == {"dense": 2 + 1 + 2 * 5, "other": 2 + 2 * 5}
    assert times["dense"].seconds == pytest.approx(0.01)
    assert times["other"].ratio.median == pytest.approx(3)


def test_the_spread_is_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert Spread.of([1.5]) == (1.5, 1.5, 1.5)


def test_threads_and_garbage_collection_come_back_after_a_failure() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"), one_thread():
        assert not gc.isenabled() and torch.get_num_threads() == 1
        raise RuntimeError("broken")
    assert gc.isenabled() and torch.get_num_threads() == before
