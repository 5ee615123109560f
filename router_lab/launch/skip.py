"""Which runs of a grid are left to do. The parent asks before torch is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from router_lab.launch.compose import Composer
from router_lab.runs.folder import run_dir
from router_lab.runs.state import RunState, read_state

Overrides = tuple[str, ...]
LEFT_ALONE = {
    "finished": "finished before",
    "running": "being trained by another launch",
    "failed": "failed before (retry=true tries them again)",
}


def will_train(state: RunState, retry: bool) -> bool:
    """Whether a launch trains the run: not if it is finished or running, nor if it failed, unless
    `retry`."""
    if state.state in ("failed", "unreadable"):
        return retry
    return state.state not in ("finished", "running")


def left_to_do(
    composer: Composer, overrides: Sequence[Overrides], retry: bool = False
) -> tuple[list[Overrides], int]:
    """The runs to launch, and how many failed before and are left alone; prints a summary.

    Runs of one fingerprint and seed are one run, whatever their arms are called.
    """
    todo: list[Overrides] = []
    names: dict[tuple[str, int], str] = {}
    states: Counter[str] = Counter()
    notes: list[str] = []
    for one in overrides:
        run = run_dir(composer.compose(one))
        name = names.setdefault((run.fingerprint, run.seed), run.name)
        if name != run.name:
            notes.append(f"{run.name} is the same run as {name}, which stands for both")
        if states.total() == len(names):  # a run that has been counted
            continue
        state = read_state(run.folder)
        kind = state.state
        if will_train(state, retry):
            todo.append(one)
            kind = "to do"
        elif kind not in ("finished", "running"):
            kind = "failed"
            notes.append(f"{run.name}: {state.reason}")
        states[kind] += 1
    parts = [f"{len(names)} runs", f"{states['to do']} to do"]
    for kind, words in LEFT_ALONE.items():
        if states[kind]:
            parts.append(f"{states[kind]} {words}")
    print("\n  ".join([", ".join(parts), *notes]), flush=True)
    return todo, states["failed"]
