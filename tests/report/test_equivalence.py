"""Equivalence within a margin: against statsmodels, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from statsmodels.stats.weightstats import ttost_paired

from router_lab.report.statistics import (
    Difference,
    corrected,
    p_equivalent,
    paired_difference,
    power_equivalent,
    seeds_equivalent,
    seeds_to_decide,
)

MARGIN = 0.01


def difference_of(draws: np.ndarray) -> Difference:
    values = dict(enumerate(draws.tolist()))
    difference = paired_difference(values, dict.fromkeys(values, 0.0))
    assert difference is not None
    return difference


def family(arms: np.ndarray, margin: float = MARGIN) -> dict[tuple[int, int], Difference]:
    """The corrected differences of any two arms, from their values [arms, seeds]."""
    pairs = [(i, j) for i in range(len(arms)) for j in range(i + 1, len(arms))]
    tests = corrected([difference_of(arms[i] - arms[j]) for i, j in pairs], margin)
    return dict(zip(pairs, tests, strict=True))


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=9),
       st.floats(0.01, 2.0))  # fmt: skip
def test_p_is_that_of_statsmodels(values: list[tuple[float, float]], margin: float) -> None:
    arm, other = np.array(values).T
    if np.std(arm - other) < 1e-6:
        return
    difference = paired_difference(dict(enumerate(arm)), dict(enumerate(other)))
    assert difference is not None
    p, _, _ = ttost_paired(arm, other, -margin, margin)
    assert p_equivalent(difference, margin) == pytest.approx(float(p), abs=1e-9)


def test_without_spread_and_with_one_seed() -> None:
    assert p_equivalent(difference_of(np.array([0.005, 0.005])), MARGIN) == 0.0
    assert p_equivalent(difference_of(np.array([0.5, 0.5])), MARGIN) == 1.0
    (same,) = corrected([difference_of(np.zeros(3))], MARGIN)
    assert same.decision == "equivalent"
    (shifted,) = corrected([difference_of(np.full(3, 0.25))], MARGIN)
    assert shifted.decision == "different"
    (one,) = corrected([difference_of(np.array([0.0]))], MARGIN)
    assert p_equivalent(one, MARGIN) is None and one.decision == "undecided"


def test_a_pair_by_hand() -> None:
    # Mean 0.002, sd 0.001, 4 seeds: 0.002 ± 3.182 · 0.0005 = 0.0004 to 0.0036.
    draws = 0.002 + 0.001 * np.array([1.0, -1.0, 1.0, -1.0]) * math.sqrt(3 / 4)
    (difference,) = corrected([difference_of(draws)], MARGIN)
    assert difference.half == pytest.approx(0.00159, abs=1e-5)
    assert difference.decision == "different"  # though by less than the margin
    (centred,) = corrected([difference_of(draws - 0.002)], MARGIN)
    assert centred.decision == "equivalent"
    (narrow,) = corrected([difference_of(draws - 0.002)], 0.0015)
    assert narrow.decision == "undecided"
    assert difference_of(draws - 0.002).decision == "undecided"  # no family, no margin


def test_the_interval_agrees_with_the_decision_in_any_family() -> None:
    rng, decisions = np.random.default_rng(0), set()
    for _ in range(150):
        scale = rng.choice([0.001, 0.003, 0.01])
        means = rng.choice([0.0, 0.004, 0.02], size=5)
        arms = means[:, None] + rng.normal(0, scale, (5, rng.integers(2, 8)))
        for d in family(arms).values():
            assert d.half is not None and d.p_holm is not None and d.p_same is not None
            excludes = abs(d.mean) > d.half
            assert excludes == (d.decision == "different") == (d.p_holm < 0.05)
            within = abs(d.mean) + d.half < MARGIN
            assert (within and not excludes) == (d.decision == "equivalent")
            assert d.decision != "equivalent" or d.p_same < 0.05
            decisions.add(d.decision)
    assert decisions == {"different", "equivalent", "undecided"}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.001, 0.004])
def test_arms_that_differ_by_the_margin_are_called_equivalent_in_5_percent_of_pages(
    seeds: int, spread: float
) -> None:
    """Two groups of three arms: the nine pairs across are as far apart as the margin."""
    rng, trials, wrong = np.random.default_rng(seeds), 1500, 0
    means = np.repeat([0.0, MARGIN], 3)[:, None]
    for _ in range(trials):
        tests = family(means + rng.normal(0, spread, (6, seeds)))
        across = [d for (i, j), d in tests.items() if means[i] != means[j]]
        wrong += any(d.decision == "equivalent" for d in across)
    assert wrong / trials <= 0.05


@pytest.mark.parametrize("true", [0.0, 0.004, 0.012])
def test_the_interval_printed_covers_the_truth_in_95_percent(true: float) -> None:
    rng, trials, covered = np.random.default_rng(3), 2500, 0
    for _ in range(trials):
        (difference,) = corrected([difference_of(rng.normal(true, 0.004, 4))], MARGIN)
        assert difference.half is not None
        covered += abs(difference.mean - true) <= difference.half
    assert 0.94 <= covered / trials <= 0.96


def test_alike_arms_are_found_equivalent_and_never_different_too_often() -> None:
    rng, trials, found, wrong = np.random.default_rng(4), 400, 0, 0
    for _ in range(trials):
        tests = family(rng.normal(0, 0.002, (4, 10))).values()
        found += all(d.decision == "equivalent" for d in tests)
        wrong += any(d.decision == "different" for d in tests)
    assert found / trials > 0.8 and wrong / trials <= 0.07


@pytest.mark.parametrize(("true", "n"), [(0.0, 4), (0.004, 6), (-0.004, 6), (0.009, 12), (0.02, 5)])
def test_power_is_the_share_of_samples_within_the_margin(true: float, n: int) -> None:
    draws = np.random.default_rng(n).normal(true, 0.006, (40_000, n))
    t = {4: 3.18245, 5: 2.77645, 6: 2.57058, 12: 2.20099}[n]
    reach = np.abs(draws.mean(1)) + t * draws.std(1, ddof=1) / math.sqrt(n)
    share = float(np.mean(reach < MARGIN))
    assert power_equivalent(true, 0.006, n, MARGIN) == pytest.approx(share, abs=0.008)


def test_the_seeds_for_equivalence_are_enough_and_one_fewer_is_not() -> None:
    for true in (0.0, 0.003):
        n = seeds_equivalent(true, 0.006, MARGIN, alpha=0.05 / 3)
        assert n is not None
        powers = [power_equivalent(true, 0.006, seeds, MARGIN, 0.05 / 3) for seeds in (n - 1, n)]
        assert powers[0] < 0.8 <= powers[1]
    assert seeds_equivalent(0.01, 0.006, MARGIN) is None
    assert seeds_equivalent(0.0, 10.0, MARGIN) is None


def test_the_plan_takes_the_outcome_that_needs_fewer_seeds() -> None:
    alike = 0.0001 + 0.009 * np.array([1.0, -1.0, 1.0, -1.0, 0.0])
    apart = 0.006 + 0.006 * np.array([1.0, -1.0, 1.0, -1.0, 0.0])
    for draws, outcome in ((alike, "equivalent"), (apart, "different")):
        (difference,) = corrected([difference_of(draws)], MARGIN)
        plan = seeds_to_decide(difference, 1)
        assert difference.decision == "undecided" and plan.outcome == outcome
        assert plan.seeds is not None and plan.seeds > 5
