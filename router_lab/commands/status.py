"""`router-lab status DIR`: what is done, running, failed and why, and how long is left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from router_lab.errors import UserError
from router_lab.report.collect import find_runs
from router_lab.runs.state import RunState, number, read_state
from router_lab.runs.table import Line, console, line, table
from router_lab.runs.text import count, duration
from router_lab.runs.versions import replaced, replaced_note

ORDER = ("running", "failed", "lost", "interrupted", "unreadable", "new", "finished")


def run_states(folder: str | Path) -> list[RunState]:
    """The state of each run under the folder. Raises UserError if the folder does not exist."""
    return [read_state(path) for path in find_runs([folder])]


def status(folder: str | Path, versions: str = "newest") -> None:
    """Print the state of the runs under the folder.

    Args:
        versions: `newest` leaves out the older versions of an arm; `all` keeps them.

    Raises UserError if the folder does not exist or contains no run.
    """
    runs = run_states(folder)
    if not runs:
        raise UserError(f"{folder} contains no run: start one with router-lab train")
    older = replaced(runs) if versions == "newest" else {}
    shown = [run for run in runs if run.folder not in older]
    out = console()
    out.print(summary(shown), style="bold", highlight=False)
    out.print()
    out.print(table(lines(shown)))
    if older:
        out.print(f"\n{replaced_note(runs, older)}", highlight=False, markup=False)


def summary(runs: Sequence[RunState]) -> str:
    """`12 runs: 2 running, 1 failed, 9 finished; about 3 min left for those running now`."""
    counts = Counter(run.state for run in runs)
    states = sorted(counts, key=ORDER.index)
    text = f"{count(len(runs), 'run')}: {', '.join(f'{counts[s]} {s}' for s in states)}"
    running = [number(run.status, "seconds_left") for run in runs if run.state == "running"]
    left = [seconds for seconds in running if seconds is not None]
    return f"{text}; about {duration(max(left))} left for those running now" if left else text


def lines(runs: Sequence[RunState]) -> list[Line]:
    """A line per running run, and one per arm for the runs that ended in the same way.

    Different configurations under one name have separate lines, marked by their fingerprints.
    """
    groups: dict[tuple[Any, ...], list[RunState]] = defaultdict(list)
    fingerprints: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        alone = run.folder if run.state == "running" else None
        groups[ORDER.index(run.state), run.arm, run.reason, run.fingerprint, alone].append(run)
        fingerprints[run.arm].add(run.fingerprint)
    shown = []
    for (_, arm, _, fingerprint, _), members in sorted(groups.items(), key=lambda item: item[0][0]):
        one = line(sorted(members, key=lambda run: run.seed or 0))
        several = len(fingerprints[arm]) > 1
        shown.append(one._replace(arm=f"{arm} ({fingerprint[:8]})") if several else one)
    return shown
