"""How `router-lab plan` shows a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from router_lab.launch.estimate import makespan
from router_lab.model.budget import TOLERANCE
from router_lab.runs.table import console
from router_lab.runs.text import count, duration, listing, percent, si

if TYPE_CHECKING:
    from router_lab.commands.arms import ArmPlan, PlannedRun

HIDDEN = frozenset({"arm", "seed", "grid.name", "out", "retry"})
"""Overrides that name runs and place them; they do not describe them."""
WIDE = 110
"""Terminals at least this wide show the differences in the same table as the numbers."""


def print_plan(arms: Sequence[ArmPlan], places: int) -> None:
    """Prints the plan.

    Args:
        places: how many runs train at a time.
    """
    out = console()
    common, differences = split(arms)
    out.print(Text(title(arms), style="bold"))
    if common:
        out.print(Text(f"{'Every arm' if len(arms) > 1 else 'Options'}: {' '.join(common)}"))
    columns = columns_of(arms)
    shared = [name for name in ("Steps", "Tokens") if len(set(columns[name])) == 1]
    lengths = [f"{cell} {name.lower()}" for name in shared if (cell := columns.pop(name)[0]) != "–"]
    if lengths:
        out.print(Text(f"Every run: {', '.join(lengths)}"))
    tables = [columns]
    if len(arms) > 1:
        names = {"Arm": columns["Arm"], "Differs in": [" ".join(one) for one in differences]}
        tables = [names, columns] if out.width < WIDE else [names | columns]
    for one in tables:
        out.print()
        out.print(table(one))
    out.print()
    for note in notes(arms, places):
        out.print(Text(note))


def table(columns: Mapping[str, Sequence[str]]) -> Table:
    made = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        words = name in ("Arm", "Differs in", "Runs")
        made.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for cells in zip(*columns.values(), strict=True):
        made.add_row(*map(Text, cells))
    return made


def title(arms: Sequence[ArmPlan]) -> str:
    """`first_look: 5 arms × seeds 0, 1 = 10 runs in runs/first_look: 10 new; 10 to do`."""
    runs = [run for arm in arms for run in arm.runs]
    seeds = list(dict.fromkeys(str(run.dir.seed) for run in runs))
    shown = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    shown = shown if len(seeds) <= 8 else count(len(seeds), "seed")
    first = runs[0].dir
    return (
        f"{first.grid}: {count(len(arms), 'arm')} × {shown} = {count(len(runs), 'run')} "
        f"in {first.folder.parent}: {states(runs)}; {sum(run.to_do for run in runs)} to do"
    )


def states(runs: Iterable[PlannedRun]) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(r.state.state for r in runs).items())


def split(arms: Sequence[ArmPlan]) -> tuple[list[str], list[list[str]]]:
    """The overrides that all arms have, and those of each arm that not all have."""
    by_arm = [
        [text for text in arm.overrides if text.partition("=")[0].lstrip("+") not in HIDDEN]
        for arm in arms
    ]
    common = [text for text in by_arm[0] if all(text in other for other in by_arm)]
    return common, [[text for text in one if text not in common] for one in by_arm]


def columns_of(arms: Sequence[ArmPlan]) -> dict[str, list[str]]:
    """The cells of each column, one per arm."""
    return {
        "Arm": [arm.name for arm in arms],
        "d_hidden": [str(arm.experiment.d_hidden) for arm in arms],
        "Off\nmatch": [off_match(arm) for arm in arms],
        "Params": [si(arm.experiment.cost.total) for arm in arms],
        "Active": [si(arm.experiment.cost.active) for arm in arms],
        "FLOPs/\ntoken": [si(arm.experiment.cost.flops_per_token) for arm in arms],
        "Steps": [f"{arm.experiment.steps:,}" if arm.experiment.steps else "–" for arm in arms],
        "Tokens": [si(arm.tokens) or "–" for arm in arms],
        "Runs": [states(arm.runs) for arm in arms],
        "Time/\nrun": [duration(arm.seconds) or "–" for arm in arms],
    }


def off_match(arm: ArmPlan) -> str:
    """By how much the layer misses its budget; ≠ beyond the tolerance."""
    match = arm.experiment.match
    if match is None:
        return "–"
    sign = "≠ " if abs(match.error) > TOLERANCE else ""
    return sign + percent(match.error, signed=True)


def notes(arms: Sequence[ArmPlan], places: int) -> list[str]:
    """The sentences below the table."""
    lines = []
    if any(off_match(arm).startswith("≠") for arm in arms):
        lines.append(f"≠ more than {TOLERANCE:.0%} off the budget that the arms are matched to.")
    by_fingerprint: dict[str, list[str]] = {}
    for arm in arms:
        by_fingerprint.setdefault(arm.runs[0].dir.fingerprint, []).append(arm.name)
    lines += [
        f"{listing(names)} are one configuration; only {names[0]} is trained."
        for names in by_fingerprint.values()
        if len(names) > 1
    ]
    return [*lines, *time_notes(arms, places)]


def time_notes(arms: Sequence[ArmPlan], places: int) -> list[str]:
    """How long the runs to do take, and what that estimate is based on."""
    by_arm = [arm.seconds_left() for arm in arms]
    in_order = [left for seed in zip_longest(*by_arm, fillvalue=0.0) for left in seed if left != 0]
    if not in_order:
        return ["There is nothing to do."]
    if any(left is None for left in in_order):
        return [f"{count(len(in_order), 'run')} to do; --no-time left out how long they take."]
    seconds = [left for left in in_order if left is not None]
    side_by_side = f", {places} at a time" if min(places, len(seconds)) > 1 else ""
    time = f"About {duration(makespan(seconds, places))} for {count(len(seconds), 'run')} to do"
    sources: dict[str, list[str]] = {}
    for arm in arms:
        if arm.source and arm.seconds_left():
            sources.setdefault(arm.source, []).append(arm.name)
    how = " and ".join(
        source if len(sources) == 1 else f"{source} ({listing(names)})"
        for source, names in sources.items()
    )
    return [f"{time}{side_by_side}.", *([f"Time by {how}; validation included."] if how else [])]
