"""Runs grouped into arms. The runs of an arm differ only in the seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from router_lab.report.collect import LeftOut, Run
from router_lab.runs.text import listing

Key = tuple[str, str]  # name and fingerprint


@dataclass(frozen=True)
class Arm:
    """A configuration with its finished runs, by seed; `name` is unique in a comparison."""

    name: str
    runs: tuple[Run, ...]
    missing: int = 0  # runs left out: failed, running, of a seed that is not compared, …

    def values(self, path: str) -> dict[int, float]:
        """The number at a dotted path of result.json by seed, of the runs that have it."""
        numbers = {run.seed: run.number(path) for run in self.runs}
        return {seed: value for seed, value in numbers.items() if value is not None}

    def mean(self, path: str) -> float | None:
        values = self.values(path).values()
        return sum(values) / len(values) if values else None

    @property
    def first(self) -> dict[str, Any]:
        """The result of the first seed, to read what all runs share."""
        return self.runs[0].result

    @property
    def arm(self) -> str:
        return self.runs[0].arm

    @property
    def lookahead(self) -> str:
        """When later tokens affect a token's routing: never, in training, always."""
        return str(self.first.get("lookahead", "never"))

    @property
    def sees_the_future(self) -> bool:
        """Whether it looks ahead in evaluation: a model that generates text cannot."""
        return self.lookahead == "always"


def group(runs: Sequence[Run], left_out: Sequence[LeftOut]) -> tuple[list[Arm], list[LeftOut]]:
    """Arms in the order in which their grids started them, and the runs that a newer one replaces.

    Runs belong together if they share the arm's name and the fingerprint, which covers everything
    but the seed, also across grids. A name with several configurations becomes several arms, named
    after what differs.
    """
    newest: dict[Key, dict[int, Run]] = defaultdict(dict)
    replaced: list[LeftOut] = []
    for run in sorted(runs, key=lambda run: run.done):
        by_seed = newest[run.arm, str(run.result.get("fingerprint"))]
        if older := by_seed.get(run.seed):
            reason = f"{run.path.name} in {run.path.parent.name} is a newer run of the same"
            replaced.append(LeftOut(older.path, older.arm, older.seed, "replaced", reason))
        by_seed[run.seed] = run
    members = {key: [by_seed[seed] for seed in sorted(by_seed)] for key, by_seed in newest.items()}
    names = _names(members)
    lost = Counter((run.arm, run.fingerprint) for run in left_out if run.state != "other data")
    arms = [Arm(names[key], tuple(its_runs), lost[key]) for key, its_runs in members.items()]
    return sorted(arms, key=_started), replaced


def on_common_seeds(
    arms: Sequence[Arm],
) -> tuple[list[Arm], set[str], tuple[int, ...], list[LeftOut]]:
    """Arms cut to the seeds on which they can be compared.

    An arm with fewer than half the seeds of the largest arm, or with a single seed if another has
    several, would cost the others too many seeds: it keeps its runs and is not ranked. The other
    arms are compared on the seeds that all of them have. Without any, no arm is ranked.

    Returns: the arms, the names of those that are ranked, their seeds, and the runs not used.
    """
    most = max(len(arm.runs) for arm in arms)
    candidates = [arm for arm in arms if len(arm.runs) >= max(most / 2, min(2, most))]
    seeds = set.intersection(*({run.seed for run in arm.runs} for arm in candidates))
    if not seeds:
        return list(arms), set(), (), []
    names = {arm.name for arm in candidates}
    shown = listing([str(seed) for seed in sorted(seeds)])
    reason = f"the arms are compared on the seeds that all have: {shown}"
    cut, unused = [], []
    for arm in arms:
        extra = [run for run in arm.runs if arm.name in names and run.seed not in seeds]
        runs = tuple(run for run in arm.runs if run not in extra)
        cut.append(replace(arm, runs=runs, missing=arm.missing + len(extra)))
        unused += [LeftOut(run.path, arm.name, run.seed, "unpaired", reason) for run in extra]
    return cut, names, tuple(sorted(seeds)), unused


def _started(arm: Arm) -> tuple[bool, tuple[str, float], str]:
    times = [run.started for run in arm.runs if run.started[0]]
    return (not times, min(times, default=("", 0.0)), arm.arm)


def _names(runs_by_key: Mapping[Key, Sequence[Run]]) -> dict[Key, str]:
    """A name for each arm, with a suffix if several share it.

    The suffix is the grid, or the overrides that differ, or else the fingerprint.
    """
    by_arm: dict[str, list[Key]] = defaultdict(list)
    for key in runs_by_key:
        by_arm[key[0]].append(key)
    names = {}
    for arm, keys in by_arm.items():
        if len(keys) == 1:
            names[keys[0]] = arm
            continue
        grids = [", ".join(sorted({run.grid for run in runs_by_key[key]})) for key in keys]
        overrides = [_overrides(runs_by_key[key][0]) for key in keys]
        common = set.intersection(*overrides)
        differing = [", ".join(sorted(one - common)) or "as it is" for one in overrides]
        for labels in (grids, differing, [fingerprint[:8] for _, fingerprint in keys]):
            if all(labels) and len(set(labels)) == len(keys):
                break
        names |= {key: f"{arm} ({label})" for key, label in zip(keys, labels, strict=True)}
    return names


def _overrides(run: Run) -> set[str]:
    overrides = (str(override).lstrip("+") for override in run.result.get("overrides") or ())
    return {override for override in overrides if not override.startswith("seed=")}
