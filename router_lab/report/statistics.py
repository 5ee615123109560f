"""Intervals over seeds, tests paired by seed, correction for many tests, and seeds needed.

Everything is Student's t: few seeds, each one number. A single seed gives no interval and no test;
these are None then, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CONFIDENCE = 0.95
ALPHA = 1.0 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 1000  # more are never planned


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds; `half` is half the width of its 95% interval, `sd` has ddof 1.

    `half` and `sd` are None for one seed.
    """

    mean: float
    n: int
    sd: float | None
    half: float | None


@dataclass(frozen=True)
class Difference:
    """One arm minus another, over the n seeds that both have.

    `p`: two-sided p-value of the paired t-test, and `half` half the width of its 95% interval; as
    `corrected` returns them, `p_holm` is p after Holm's correction and `half` is widened alike.
    `half`, `sd`, `p`, `p_holm` are None for one seed.
    """

    mean: float
    n: int
    sd: float | None
    half: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def real(self) -> bool:
        """Whether it is significant at 5% after correction for all tests."""
        return self.p_holm is not None and self.p_holm < ALPHA


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (ddof 1) and 95% t-interval. Raises ValueError without values."""
    if not values:
        raise ValueError("no values to average")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, 1, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * sd / math.sqrt(n)
    return Estimate(mean, n, sd, half)


def paired_difference(arm: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """The difference arm − other over their common seeds; None without any.

    Args:
        arm, other: values by seed.
    """
    seeds = sorted(arm.keys() & other.keys())
    if not seeds:
        return None
    difference = estimate([arm[seed] - other[seed] for seed in seeds])
    return Difference(
        difference.mean, difference.n, difference.sd, difference.half, _p_value(difference)
    )


def _p_value(difference: Estimate) -> float | None:
    from scipy.special import stdtr

    if difference.sd is None:
        return None
    if difference.sd == 0.0:  # the same run under two names, or noiseless
        return 1.0 if difference.mean == 0.0 else 0.0
    t = difference.mean / (difference.sd / math.sqrt(difference.n))
    return float(2.0 * stdtr(difference.n - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's step-down correction (Holm 1979); None is no test and stays None.

    Rejecting if the corrected value is below 0.05 makes an error in at most 5% of families, however
    the tests depend on each other.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, index) in enumerate(tests):
        worst = max(worst, min(1.0, p * (len(tests) - rank)))
        corrected[index] = worst
    return corrected


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """A family of differences with `p_holm`, and with intervals widened as much as p was raised.

    An interval at level 1 − α p / p_holm instead of 1 − α excludes 0 exactly where p_holm < α, so
    interval and p always agree.
    """
    family = holm([difference.p for difference in differences])
    return [
        replace(difference, p_holm=p_holm, half=_half(difference, p_holm))
        for difference, p_holm in zip(differences, family, strict=True)
    ]


def _half(difference: Difference, p_holm: float | None) -> float | None:
    if difference.sd is None or not p_holm or difference.p is None:
        return difference.half  # no test, or a difference without spread
    level = ALPHA * difference.p / p_holm
    return t_quantile(1.0 - level / 2, difference.n - 1) * difference.sd / math.sqrt(difference.n)


def seeds_needed(mean: float, sd: float | None, alpha: float = ALPHA) -> int | None:
    """Seeds for a two-sided paired t-test at level alpha to find such a difference, power 0.8.

    `mean` and `sd` describe the difference per seed, taken as the truth. The power is exact
    (noncentral t). None when more than MOST_SEEDS or when there is no spread to go by.
    """
    if sd is None:
        return None
    if sd == 0.0:
        return None if mean == 0.0 else 2
    effect = abs(mean) / sd
    low, high = 1, 2  # power(low) < POWER <= power(high), once the loop is through
    while power_of(effect, high, alpha) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if power_of(effect, middle, alpha) < POWER:
            low = middle
        else:
            high = middle
    return high if high <= MOST_SEEDS else None


def seeds_to_decide(difference: Difference, tests: int) -> tuple[int | None, int | None]:
    """Seeds per arm that would decide a difference in a family of so many tests (Bonferroni).

    A difference is noticed because it is large, so the true one is probably smaller: planning takes
    the end of its 60% interval that is nearer to 0 ("safeguard power", Perugini et al. 2014).

    Returns:
        The seeds needed then, None where that end is beyond 0; and those needed if the true
        difference were as large as this one, which is a lower bound.
    """
    if difference.sd is None:
        return None, None
    level = ALPHA / tests
    margin = t_quantile(0.8, difference.n - 1) * difference.sd / math.sqrt(difference.n)
    safeguard = max(0.0, abs(difference.mean) - margin)
    return (
        seeds_needed(safeguard, difference.sd, level),
        seeds_needed(difference.mean, difference.sd, level),
    )


def power_of(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that the paired t-test at level alpha finds a difference of `effect` deviations (sd).

    The statistic follows a noncentral t with n − 1 degrees of freedom, shifted by effect √n.
    """
    from scipy.special import nctdtr

    df, shift = n - 1, abs(effect) * math.sqrt(n)
    critical = t_quantile(1.0 - alpha / 2, df)
    power = 1.0 - nctdtr(df, shift, critical)
    if shift < 3.0:  # otherwise the other tail is below 1e-5, and scipy may return nan
        power += nctdtr(df, shift, -critical)
    return float(power)


def t_quantile(p: float, df: int) -> float:
    """The t below which a share p of Student's t lies."""
    from scipy.special import stdtrit  # imported here: it takes 0.2 s

    return float(stdtrit(df, p))
