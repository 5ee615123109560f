"""The statistics against scipy.stats, simulation, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from router_lab.report.statistics import (
    estimate,
    holm,
    paired_difference,
    power_of,
    seeds_needed,
    t_quantile,
)

TRIALS = 4000


def test_the_t_table_of_the_textbook() -> None:
    table = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}
    for df, t in table.items():
        assert t_quantile(0.975, df) == pytest.approx(t, abs=5e-4)


def test_an_estimate_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])  # sd 1, so the half width is 4.303 / sqrt(3)
    assert (found.mean, found.n, found.sd) == (2.0, 3, 1.0)
    assert found.half == pytest.approx(2.4841, abs=1e-4)


def test_one_seed_gets_no_interval_and_no_test() -> None:
    found = estimate([1.5])
    assert (found.mean, found.sd, found.half) == (1.5, None, None)
    difference = paired_difference({0: 2.0}, {0: 1.5, 1: 1.4})
    assert difference is not None
    assert (difference.mean, difference.n, difference.half, difference.p) == (0.5, 1, None, None)
    assert not difference.real


def test_pairing_is_by_seed_and_equals_scipys_test() -> None:
    arm = {3: 2.10, 0: 2.31, 7: 2.22, 5: 9.0}
    other = {0: 2.30, 3: 2.12, 7: 2.25, 8: -9.0}
    difference = paired_difference(arm, other)
    assert difference is not None
    pairs = [0, 3, 7]
    test = stats.ttest_rel([arm[s] for s in pairs], [other[s] for s in pairs])
    interval = test.confidence_interval(0.95)
    assert difference.n == 3
    assert difference.p == pytest.approx(test.pvalue)
    assert difference.half is not None
    assert difference.mean - difference.half == pytest.approx(interval.low)
    assert difference.mean + difference.half == pytest.approx(interval.high)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_difference_without_spread() -> None:
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    shifted = paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
    assert same is not None and shifted is not None
    assert same.p == 1.0 and shifted.p == 0.0


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1, then made monotone.
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.01, None, 0.9]) == [pytest.approx(0.02), None, 0.9]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(list(p_values))
    for p, q in zip(p_values, corrected, strict=True):
        assert q is not None and p <= q <= min(1.0, p * len(p_values)) + 1e-12
    ranked = [q for _, q in sorted(zip(p_values, corrected, strict=True), key=lambda pair: pair[0])]
    assert ranked == sorted(ranked)  # type: ignore[type-var]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_intervals_cover_the_truth_in_95_percent(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    mean_covered = difference_covered = 0
    for _ in range(TRIALS):
        luck = rng.normal(0, 0.03, seeds)  # shared by both arms of a seed
        arm = 2.0 + luck + rng.normal(0, 0.01, seeds)
        other = 2.1 + luck + rng.normal(0, 0.01, seeds)
        mean = estimate(arm.tolist())
        assert mean.half is not None
        mean_covered += abs(mean.mean - 2.0) <= mean.half
        difference = paired_difference(dict(enumerate(arm)), dict(enumerate(other)))
        assert difference is not None and difference.half is not None
        difference_covered += abs(difference.mean + 0.1) <= difference.half
    assert 0.93 <= mean_covered / TRIALS <= 0.97
    assert 0.93 <= difference_covered / TRIALS <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_one_arm_of_several_names_differs_in_5_percent(seeds: int) -> None:
    rng = np.random.default_rng(100 + seeds)
    trials, found = 2000, 0
    for _ in range(trials):
        luck = rng.normal(0, 0.03, seeds)
        arms = [dict(enumerate(luck + rng.normal(0, 0.01, seeds))) for _ in range(6)]
        tests = [paired_difference(arm, arms[0]) for arm in arms[1:]]
        corrected = holm([test.p if test else None for test in tests])
        found += any(p is not None and p < 0.05 for p in corrected)
    assert found / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("n", [2, 3, 5, 40, 1000])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 21, 0.0005])
def test_power_is_the_share_of_samples_that_reject(n: int, alpha: float) -> None:
    """Over the quantiles of the sample's deviation: a chi over the square root of df."""
    quantiles = (np.arange(100_000) + 0.5) / 100_000
    deviation = np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    limit = stats.t.ppf(1 - alpha / 2, n - 1) * deviation
    for effect in (-0.5, 0.0, 0.01, 0.1, 1.0, 3.0, 30.0, 1e6):
        shift = effect * math.sqrt(n)
        exact = np.mean(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift))
        assert power_of(effect, n, alpha) == pytest.approx(exact, rel=2e-3, abs=1e-5)


def test_the_seeds_needed_are_enough_and_one_fewer_is_not() -> None:
    # Cohen's tables for the paired t-test at 5%, two-sided, power 0.8: d = 0.5, 1 → 34, 10.
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(-0.01, 0.01) == 10
    rng = np.random.default_rng(0)
    for effect in (1.0, 2.0):
        n = seeds_needed(effect, 1.0)
        assert n is not None
        for seeds, enough in ((n, True), (n - 1, False)):
            draws = rng.normal(effect, 1.0, (20_000, seeds))
            t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(seeds))
            share = float(np.mean(np.abs(t) > t_quantile(0.975, seeds - 1)))
            assert (share >= 0.79) if enough else (share < 0.80)


def test_seeds_needed_where_there_is_no_answer() -> None:
    assert seeds_needed(0.1, None) is None
    assert seeds_needed(0.0, 0.0) is None
    assert seeds_needed(0.1, 0.0) == 2
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-4, 1.0) is None
