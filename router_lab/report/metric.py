"""One metric of all arms: means over seeds, and the differences of any two arms, tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from router_lab.errors import UserError
from router_lab.report.arms import Arm
from router_lab.report.statistics import (
    Difference,
    Estimate,
    corrected,
    estimate,
    paired_difference,
)

QUALITY = "quality.bits_per_byte"
MAX_VIO = "routing.mean.max_vio"
DOMAIN_NMI = "routing.mean.domain_nmi"
MARGIN = 0.01
"""Bits per byte within which two arms are equivalent, unless another margin is asked for."""
SECTIONS = ("routing.mean", "probe", "quality", "train", "params")
"""Sections of result.json whose numbers can be asked for by name alone."""


@dataclass(frozen=True)
class Metric:
    """A number of result.json, compared over the arms.

    `estimates`: mean and interval of every arm that has it, by name.
    `pairs`: the difference first − second of any two ranked arms, the lower arm first. They are one
    family, corrected over all pairs, so any two arms may be picked after looking at the results.
    `reference`: the arm that others are compared with: the baseline, or, if that lacks the metric,
    the first arm of the grid that has it.
    """

    path: str
    estimates: Mapping[str, Estimate]
    pairs: Mapping[tuple[str, str], Difference]
    reference: str
    margin: float | None

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def between(self, arm: str, other: str) -> Difference | None:
        """arm − other; None for unranked arms, and for an arm and itself."""
        if (arm, other) in self.pairs:
            return self.pairs[arm, other]
        difference = self.pairs.get((other, arm))
        return None if difference is None else -difference

    def to_reference(self, arm: str) -> Difference | None:
        return self.between(arm, self.reference)


def compare_metric(
    path: str, arms: Sequence[Arm], ranked: set[str], baseline: str, margin: float | None = None
) -> Metric:
    """Compare the arms, given in the grid's order, by the number at a path of result.json."""
    values = {arm.name: numbers for arm in arms if (numbers := arm.values(path))}
    names = [name for name in values if name in ranked]
    names.sort(key=lambda name: fmean(values[name].values()))
    differences = {
        pair: difference
        for pair in combinations(names, 2)
        if (difference := paired_difference(values[pair[0]], values[pair[1]])) is not None
    }
    return Metric(
        path,
        {name: estimate(list(numbers.values())) for name, numbers in values.items()},
        dict(zip(differences, corrected([*differences.values()], margin), strict=True)),
        baseline if baseline in values else next(iter(values), baseline),
        margin,
    )


def path_of(arms: Sequence[Arm], name: str, option: str) -> str:
    """The dotted path of a number that was asked for.

    Raises UserError, which names the option, if no arm has it.
    """
    for path in (name, *(f"{section}.{name}" for section in SECTIONS)):
        if any(arm.values(path) for arm in arms):
            return path
    metrics = {key for arm in arms for key in (arm.first.get("routing") or {}).get("mean") or {}}
    names = ", ".join(sorted(metrics)) or "no routing metric"
    raise UserError(f"{option} {name} is no number of these runs: they have {names}")


def margins(text: str) -> dict[str, float]:
    """The margins of `--margin 0.01,max_vio=0.05`, by metric; bits_per_byte needs no name.

    Raises UserError for what is not a number above 0.
    """
    by_metric = {"bits_per_byte": MARGIN}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0.0 < value < float("inf"):
            raise UserError(
                f"--margin {part} is not a margin: write bits per byte above 0, such as 0.01, or "
                "max_vio=0.05 for another metric"
            )
        by_metric[name or "bits_per_byte"] = value
    return by_metric
