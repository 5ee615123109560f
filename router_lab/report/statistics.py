"""Intervals over seeds, paired tests of difference and equivalence, corrections, seeds needed.

Everything is Student's t: few seeds, each one number. A single seed gives no interval and no test;
these are None then, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

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
    `corrected` returns them, `p_holm` and `p_same` are corrected, `half` is widened alike, and
    `margin` is the one that `p_same` is for. `half`, `sd`, `p`, `p_holm` are None for one seed.
    """

    mean: float
    n: int
    sd: float | None
    half: float | None
    p: float | None
    p_holm: float | None = None
    p_same: float | None = None
    margin: float | None = None

    @property
    def real(self) -> bool:
        """Whether it is significant at 5% after correction for all tests."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def decision(self) -> Literal["different", "equivalent", "undecided"]:
        """Different if the interval excludes 0; otherwise equivalent if it is within ±margin."""
        if self.real:
            return "different"
        within = self.margin is not None and self.half is not None and self.p_holm is not None
        return "equivalent" if within and self.reach < (self.margin or 0.0) else "undecided"

    @property
    def reach(self) -> float:
        """The end of the interval that is further from 0, without its sign."""
        return abs(self.mean) + (self.half or 0.0)

    def __neg__(self) -> Difference:
        return replace(self, mean=-self.mean)


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
    if difference.sd is None:
        return None
    if difference.sd == 0.0:  # the same run under two names, or noiseless
        return 1.0 if difference.mean == 0.0 else 0.0
    return 2.0 * _tail(difference.mean, difference.sd, difference.n)


def p_equivalent(difference: Difference, margin: float) -> float | None:
    """The p-value of two one-sided paired t-tests (TOST, Schuirmann 1987); None for one seed.

    They test that the difference is at least margin, and at most −margin; p is the larger one.
    """
    if difference.sd is None:
        return None
    room = margin - abs(difference.mean)
    if difference.sd == 0.0:
        return 0.0 if room > 0.0 else 1.0
    tail = _tail(room, difference.sd, difference.n)
    return tail if room > 0.0 else 1.0 - tail


def _tail(mean: float, sd: float, n: int) -> float:
    """The chance that Student's t exceeds |mean| / (sd / √n)."""
    from scipy.special import stdtr

    return float(stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n))))


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


def corrected(differences: Sequence[Difference], margin: float | None = None) -> list[Difference]:
    """A family of differences, each tested for being different and, with a margin, equivalent.

    Both kinds of tests are corrected over the family (Holm). TOST is done at 2.5% per side, so that
    it belongs to the same 95% interval. An interval at level 1 − α p / p_holm instead of 1 − α
    excludes 0 exactly if p_holm < α. One that does not is widened, if need be, to lie within
    ±margin only if the corrected p of TOST is below α. So the interval and `decision` agree.
    """
    family = holm([difference.p for difference in differences])
    sides = [None if margin is None else p_equivalent(d, margin) for d in differences]
    same = [None if p is None else min(1.0, 2.0 * p) for p in sides]
    widened = []
    for d, p_holm, p, p_same in zip(differences, family, same, holm(same), strict=True):
        half = _half(d, d.p, p_holm)
        if half is not None and p_same is not None and not (p_holm is not None and p_holm < ALPHA):
            half = max(half, _half(d, p, p_same) or 0.0)
        widened.append(replace(d, p_holm=p_holm, half=half, p_same=p_same, margin=margin))
    return widened


def _half(difference: Difference, p: float | None, p_holm: float | None) -> float | None:
    """Half the width of the interval at the level to which the correction lowered α."""
    if difference.sd is None or not p_holm or p is None:
        return difference.half  # no test, or a difference without spread
    quantile = t_quantile(1.0 - ALPHA * p / p_holm / 2, difference.n - 1)
    return quantile * difference.sd / math.sqrt(difference.n)


def seeds_needed(mean: float, sd: float | None, alpha: float = ALPHA) -> int | None:
    """Seeds for a two-sided paired t-test at level alpha to find such a difference, power 0.8.

    `mean` and `sd` describe the difference per seed, taken as the truth. The power is exact
    (noncentral t). None if more than MOST_SEEDS are needed or sd is unknown.
    """
    if sd is None or sd == mean == 0.0:
        return None
    return _fewest(lambda n: 1.0 if sd == 0.0 else power_of(abs(mean) / sd, n, alpha))


def seeds_equivalent(
    mean: float, sd: float | None, margin: float, alpha: float = ALPHA
) -> int | None:
    """Seeds for the interval at level 1 − alpha to lie within ±margin, power 0.8; see there."""
    if sd is None or abs(mean) >= margin:
        return None
    return _fewest(lambda n: power_equivalent(mean, sd, n, margin, alpha))


def _fewest(power: Callable[[int], float]) -> int | None:
    """The least n from 2 to MOST_SEEDS at which a rising power reaches POWER."""
    low, high = 1, 2  # power(low) < POWER <= power(high), once the loop is through
    while power(high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high if high <= MOST_SEEDS else None


class Plan(NamedTuple):
    """Seeds per arm that would decide a pair of arms, and what they would show.

    `seeds`: None if more than MOST_SEEDS. `at_least`: those needed if the true difference is as
    large as the one observed, a lower bound; None if even that takes more.
    """

    seeds: int | None
    at_least: int | None
    outcome: Literal["different", "equivalent"]


def seeds_to_decide(difference: Difference, tests: int) -> Plan:
    """Seeds per arm that would decide a difference in a family of so many tests (Bonferroni).

    A difference is noticed because it is large, so the true one is probably smaller: planning takes
    the end of its 60% interval that is nearer to 0 ("safeguard power", Perugini et al. 2014), and
    for equivalence the end that is further away.
    """
    d, level = difference, ALPHA / tests
    if d.sd is None:
        return Plan(None, None, "different")
    off = t_quantile(0.8, d.n - 1) * d.sd / math.sqrt(d.n)
    seeds = seeds_needed(max(0.0, abs(d.mean) - off), d.sd, level)
    at_least = seeds_needed(d.mean, d.sd, level)
    if d.margin is not None:
        same = seeds_equivalent(abs(d.mean) + off, d.sd, d.margin, level)
        if same is not None and same < (seeds or math.inf):
            return Plan(same, same, "equivalent")
    return Plan(seeds, at_least, "different")


def power_equivalent(mean: float, sd: float, n: int, margin: float, alpha: float = ALPHA) -> float:
    """Chance that the t-interval at level 1 − alpha lies within ±margin.

    The mean over the quantiles of the sample's deviation, a chi over √(n − 1).
    """
    import numpy as np
    from scipy.special import chdtri, ndtr

    tail = (np.arange(400) + 0.5) / 400
    deviation = sd * np.sqrt(chdtri(n - 1, tail) / (n - 1))
    room = np.maximum(0.0, margin - t_quantile(1.0 - alpha / 2, n - 1) * deviation / math.sqrt(n))
    scale = max(sd, 1e-300) / math.sqrt(n)
    return float(np.mean(ndtr((room - mean) / scale) - ndtr((-room - mean) / scale)))


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
